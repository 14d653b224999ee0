"""Whatever stops a run, it goes on as if nothing had happened, bit for bit."""

import json
import random
import resource
import signal

from train_helpers import Process

from qwq.checkpoint import native


def test_sigkill_at_random_steps_then_resume_gives_the_same_bits(recipe, tmp_path, same_as_uninterrupted):
    """Killed twice, each time wherever it happened to be."""
    out = tmp_path / "run"
    for low, high in ((1, 28), (30, 50)):
        run = Process(recipe, out, "--resume")
        step = random.randint(low, high)
        run.wait_for(step)
        code, error = run.end(signal.SIGKILL)
        assert code == -signal.SIGKILL, (step, error)
    code, error = Process(recipe, out, "--resume").end()
    assert code == 0, error
    same_as_uninterrupted(out)
    steps = [
        line["step"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert steps == list(range(1, 61))
    assert len(list((out / "checkpoints").iterdir())) == recipe.training.keep


def test_ctrl_c_saves_says_how_to_go_on_and_the_run_ends_the_same(recipe, tmp_path, same_as_uninterrupted):
    """One line on standard error, exit code 1, a checkpoint of the step it stopped at."""
    out = tmp_path / "run"
    run = Process(recipe, out)
    run.wait_for(10)
    code, error = run.end(signal.SIGINT)
    assert code == 1
    assert f"qwq train tiny --out {out} --resume" in error
    assert "Traceback" not in error
    newest = native.newest(out)
    assert newest is not None
    assert f"step {int(newest.name[5:])} is saved" in error
    code, error = Process(recipe, out, "--resume").end()
    assert code == 0, error
    same_as_uninterrupted(out)


def test_full_disk_while_saving_keeps_the_previous_checkpoint(recipe, tmp_path, same_as_uninterrupted):
    """No file may grow beyond 300 kB: the weights still fit, the optimizer's state does not."""
    out = tmp_path / "run"
    run = Process(recipe, out)
    run.wait_for(8)
    assert run.end(signal.SIGINT)[0] == 1
    before = native.newest(out)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, error = Process(recipe, out, "--resume", preexec_fn=limit).end()
    assert code == 1
    assert "Traceback" not in error
    assert "cannot write" in error
    assert native.newest(out) == before
    native.load_model(before)
    assert not [p for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]
    code, error = Process(recipe, out, "--resume").end()
    assert code == 0, error
    same_as_uninterrupted(out)
