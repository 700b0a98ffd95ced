import pytest

pytest.register_assert_rewrite("tests.common", "tests.library.gpt2_files")  # they assert for the tests
