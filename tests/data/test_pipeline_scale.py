"""However the work is shared out, the corpus is the same to the byte; what was done before a stop is not done again."""

import json
import os
import random
import subprocess
import sys

import pytest

from qwq.data import build, pipeline_parts, read_documents
from qwq.errors import QwqError, UsageError

WORDS = ["the", "of", "and", *(f"{a}{b}" for a in ("ka", "lo", "mi", "ner") for b in ("bel", "dor", "sun", "tar"))]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Six files of rows with duplicates across files and a broken one, in pieces of a file each."""
    chance = random.Random(7)
    monkeypatch.setattr("qwq.data.sources.PIECE", 1)
    (tmp_path / "in").mkdir()
    shared = [" ".join(chance.choices(WORDS, k=70)) for _ in range(10)]
    for name in "abcdef":
        rows = shared + [" ".join(chance.choices(WORDS, k=70)) + f" jo{name}@mail.org." for _ in range(30)]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "in" / "g.jsonl").write_text("not json\n")
    return tmp_path / "in"


def files(folder):
    """{relative path: bytes} of a corpus."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made(corpus, out, **options):
    report = build([str(corpus)], out, progress=False, **options)
    assert report["set_aside"][0]["reason"].startswith("1 bad line")
    assert not out.with_name(f".{out.name}.pieces").exists()
    return files(out)


def test_one_process_and_two_give_the_same_bytes(corpus, tmp_path):
    """Documents, held-out ones, duplicates and both reports."""
    one = made(corpus, tmp_path / "one", workers=1)
    assert made(corpus, tmp_path / "two", workers=2) == one
    assert {"report.json", "report.html", "documents/00000.jsonl.zst", "duplicates.jsonl"} <= set(one)
    report = json.loads(one["report.json"])
    assert report["stages"]["exact_dedup"]["dropped"] == {"duplicate": 50}
    assert report["stages"]["personal"]["tally"] == {"EMAIL": 180}


def test_under_datatrove_the_bytes_are_the_same(corpus, tmp_path):
    """LocalPipelineExecutor, two tasks."""
    pytest.importorskip("datatrove", reason="needs datatrove: pip install 'qwq[data]'")
    one = made(corpus, tmp_path / "one", workers=1)
    assert made(corpus, tmp_path / "two", workers=2, executor="datatrove") == one


def test_under_ray_the_bytes_are_the_same(corpus, tmp_path):
    """RayPipelineExecutor on this machine."""
    pytest.importorskip("datatrove", reason="needs datatrove: pip install 'qwq[data]'")
    pytest.importorskip("ray", reason="needs Ray: pip install 'qwq[data]'")
    one = made(corpus, tmp_path / "one", workers=1)
    assert made(corpus, tmp_path / "two", workers=2, executor="ray") == one


SBATCH = """#!/bin/sh
for script; do :; done
sed -n 's/^#SBATCH --array=0-//p' "$script" > {folder}/last
[ -s {folder}/last ] || {{ echo "Submitted batch job 8"; exit 0; }}
for i in $(seq 0 $(sed 's/%.*//' {folder}/last)); do
  SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here SLURM_JOB_ID=7 sh "$script" > {folder}/log.$i 2>&1
done
echo "Submitted batch job 7"
"""


def test_under_slurm_the_bytes_are_the_same(corpus, tmp_path, monkeypatch):
    """SlurmPipelineExecutor's own job script; sbatch, srun and squeue are stand-ins that run it here."""
    pytest.importorskip("datatrove", reason="needs datatrove: pip install 'qwq[data]'")
    one = made(corpus, tmp_path / "one", workers=1)
    tools = {
        "sbatch": SBATCH.format(folder=tmp_path),
        "srun": '#!/bin/sh\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n',
        "squeue": "#!/bin/sh\nexit 1\n",
        "scontrol": "#!/bin/sh\necho here\n",
    }
    (tmp_path / "bin").mkdir()
    for name, script in tools.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert made(corpus, tmp_path / "two", workers=2, executor="slurm:cpu") == one


def test_an_unknown_executor_is_refused(corpus, tmp_path):
    """With the names of those that are known."""
    with pytest.raises(
        UsageError, match="no such executor: cluster; known are process, datatrove, ray, slurm:PARTITION"
    ):
        build([str(corpus)], tmp_path / "out", progress=False, executor="cluster")


def test_what_was_done_is_not_done_again(corpus, tmp_path, monkeypatch):
    """Stopped at the fourth piece; the second run makes the rest, and the result is that of a run without a stop."""
    whole = made(corpus, tmp_path / "whole", workers=1)
    seen = []
    make = pipeline_parts.make_piece

    def stops(piece, key, folder, tick):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(piece.files[0].name)
        make(piece, key, folder, tick)

    monkeypatch.setattr(pipeline_parts, "make_piece", stops)
    with pytest.raises(
        QwqError, match=r"stopped; what is done is kept in .*\.out\.pieces, and the same command goes on"
    ):
        build([str(corpus)], tmp_path / "out", progress=False, workers=1)
    assert not (tmp_path / "out").exists()

    def counts(piece, key, folder, tick):
        seen.append(piece.files[0].name)
        make(piece, key, folder, tick)

    monkeypatch.setattr(pipeline_parts, "make_piece", counts)
    assert made(corpus, tmp_path / "out", workers=1) == whole
    assert sorted(seen) == [f"{name}.jsonl" for name in "abcdefg"]


def test_a_changed_file_is_read_again(corpus, tmp_path, monkeypatch):
    """A piece belongs to the bytes it was made of, and to the settings."""
    make = pipeline_parts.make_piece
    monkeypatch.setattr("qwq.data.pipeline.join", lambda *arguments: (_ for _ in ()).throw(QwqError("disk full")))
    with pytest.raises(QwqError, match="disk full"):
        build([str(corpus)], tmp_path / "out", progress=False, workers=1)
    monkeypatch.undo()
    monkeypatch.setattr("qwq.data.sources.PIECE", 1)
    seen = []

    def counts(piece, key, folder, tick):
        seen.append(piece.files[0].name)
        make(piece, key, folder, tick)

    monkeypatch.setattr(pipeline_parts, "make_piece", counts)
    (corpus / "c.jsonl").write_text(json.dumps({"text": " ".join(WORDS * 3)}) + "\n")
    made(corpus, tmp_path / "out", workers=1)
    assert seen == ["c.jsonl"]


KILLED = """
import os, sys
from qwq.data import build, pipeline_parts
import qwq.data.sources
qwq.data.sources.PIECE = 1
make = pipeline_parts.make_piece
def dies(piece, key, folder, tick):
    if piece.files[0].name == "d.jsonl" and not os.path.exists(sys.argv[3]):
        open(sys.argv[3], "w").close()
        os.kill(os.getpid(), 9)
    make(piece, key, folder, tick)
pipeline_parts.make_piece = dies
from qwq.errors import QwqError
try:
    build([sys.argv[1]], sys.argv[2], progress=False, workers=2)
except QwqError as error:
    sys.exit(str(error))
"""


def test_a_worker_that_is_killed_costs_one_line(corpus, tmp_path):
    """As the system does when memory runs out; the same command then ends well."""
    command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / "out"), str(tmp_path / "killed")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert first.returncode == 1
    assert first.stderr.startswith("a worker died, perhaps for want of memory; what is done is kept")
    assert subprocess.run(command, timeout=120).returncode == 0
    assert sum(1 for _ in read_documents(tmp_path / "out")) > 100
