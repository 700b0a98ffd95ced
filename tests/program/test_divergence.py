"""A training that diverges ends with the name of its last good checkpoint."""

from mingpt_lightning import LanguageModel
from tests.common import SMALL


def test_the_command_line_names_the_last_good_checkpoint(cli, monkeypatch):
    real = LanguageModel.loss_sum
    monkeypatch.setattr(
        LanguageModel,
        "loss_sum",
        lambda self, *batch: (real(self, *batch)[0] * (1 if self.global_step < 4 else float("inf")), batch[1].sum()),
    )
    code, _, err = cli(*SMALL, "trainer.max_steps=9", "callbacks.checkpoint.every_n_train_steps=2", "run_dir=run")
    assert code == 5
    assert err.splitlines()[-1] == (
        "error: the loss is inf at step 5, with learning rate 0.00986; the weights were not updated (optimizer.lr). "
        "The last good checkpoint is run/checkpoints/last.ckpt. Lower lr, or check the data."
    )
