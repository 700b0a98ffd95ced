"""Reading text: whole characters wherever a chunk ends, and anything but UTF-8 refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingpt_lightning import UserError
from mingpt_lightning import text as text_files
from mingpt_lightning.text import read_text

alphabet = st.sampled_from("ab\ufeff\né€𝄞🤗")


@given(text=st.text(alphabet, min_size=1, max_size=40), mark=st.booleans(), chunk=st.integers(1, 9))
def test_characters_are_whole_wherever_a_chunk_ends(
    tmp_path_factory: pytest.TempPathFactory, text: str, mark: bool, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "text.txt"
    content = text.encode("utf-8-sig" if mark else "utf-8")
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "CHUNK", chunk)
        if content.decode("utf-8-sig"):
            assert "".join(read_text(path)) == content.decode("utf-8-sig")
        else:
            with pytest.raises(UserError, match="empty"):
                list(read_text(path))


@given(
    before=st.text(alphabet, max_size=15),
    bad=st.sampled_from([b"\xff", b"\x80", b"\xe2\x82", b"\xed\xa0\x80"]),
    after=st.sampled_from(["", "ordinary text"]),
    mark=st.booleans(),
    chunk=st.integers(1, 20),
)
def test_what_is_not_utf8_is_refused_at_its_byte(
    tmp_path_factory: pytest.TempPathFactory, before: str, bad: bytes, after: str, mark: bool, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "text.txt"
    good = before.encode("utf-8-sig" if mark else "utf-8")
    path.write_bytes(good + bad + after.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "CHUNK", chunk)
        with pytest.raises(UserError, match=rf"text.txt is not UTF-8: byte {len(good)} \(encoding\)"):
            list(read_text(path))
