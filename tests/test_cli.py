"""The command line, as a user meets it: most of it in this process, what needs a process of its own in one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Mull, content
from safetensors import SafetensorError

from mull import __version__
from mull.config import fingerprint
from mull.ledger import Rates
from mull.run import Run
from mull.stages import recipe
from mull.train import checkpoint

VERBS = (
    "demo", "run", "eval", "chat", "ask", "info", "pull", "export", "report", "tasks", "recipes", "serve", "usage",
    "keys",
)  # fmt: skip
QUESTION = "Find the Greatest Common Divisor (GCD) of these numbers: 2, 3. Give only the GCD as your final answer."

Refused = Callable[..., str]


def process(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mull.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, **more)  # type: ignore[call-overload]


# help


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mull.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.endswith("[]\n")


def test_help_answers_in_half_a_second():
    """Of processor time, which is what it takes on a machine that does nothing else."""
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.5


def test_every_verb_has_help(mull: Mull):
    listed = mull("--help")
    for verb in VERBS:
        assert f"  {verb} " in listed.out
        assert mull(verb, "--help").code == 0
    assert mull("--version").out == f"{__version__}\n"


# a run


def test_a_run_leaves_what_it_made_and_says_what_it_cost(done: Path):
    for name in ("base", "taught", "practised", "student"):
        assert (done / "models" / name / "model.safetensors").exists()
    assert json.loads((done / "models" / "result.json").read_text()) == {"model": "student"}
    report = json.loads((done / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["base", "taught", "practised", "student", "exam"]
    assert len(report["evals"]) == 4
    assert (done / "report.html").stat().st_size > 1000


def test_a_finished_run_says_so_and_shows_its_result_again(mull: Mull, tiny: Path, done: Path):
    before = content(done / "models")
    said = mull("run", tiny, "--out", done)
    assert said.code == 0
    assert "is finished" in said.err
    assert content(done / "models") == before
    for part in ("taught", "student", "thinking", "direct", "held-out", "total", str(done / "report.html")):
        assert part in said.out
    assert f"mull chat {done}" in said.out


def test_progress_goes_to_stderr_and_quiet_silences_it(mull: Mull, brief: Path, tmp_path: Path):
    talking = mull("run", brief, "--out", tmp_path / "a")
    assert "1/2 base         step 2/2  loss" in talking.err
    assert "tok/s" in talking.err
    assert "tok/s" not in talking.out
    assert mull("run", brief, "--out", tmp_path / "b", "--quiet").err == ""


def test_an_interrupted_run_continues_to_the_same_bits(tiny: Path, done: Path, tmp_path: Path):
    folder = tmp_path / "run"
    words = ["run", str(tiny), "--out", str(folder)]
    running = subprocess.Popen(
        [sys.executable, "-m", "mull.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits "ignore"
    )  # fmt: skip
    metrics = folder / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (metrics.exists() and '"taught", "step": 25' in metrics.read_text()):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith(f"continue with: mull {' '.join(words)}")
    assert not (folder / "models" / "student").exists()

    said = process(*words)
    assert said.returncode == 0, said.stderr
    assert "base  " not in said.stderr  # what was done is not done again
    assert content(folder / "models") == content(done / "models")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "taught"] == list(range(1, 61))


def test_a_full_disk_is_one_line_and_the_run_continues(brief: Path, tmp_path: Path):
    """A limit on the size of files stands for the disk: the system refuses to write in the same place."""
    folder = tmp_path / "run"
    words = ["run", str(brief), "--out", str(folder), "--quiet"]
    size = 100_000  # the tokenizer and the first lines fit, a model does not
    said = process(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert said.returncode == 2, said.stderr
    assert said.stderr.count("\n") == 1
    assert said.stderr.startswith(f"File too large: {folder} keeps everything up to the last good checkpoint")
    assert "continue with: mull run" in said.stderr
    assert not (folder / "models" / "base").exists()
    assert process(*words).returncode == 0


def test_a_full_disk_leaves_the_last_good_checkpoint(
    refused: Refused, mull: Mull, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Room for one checkpoint, not for the second."""
    words = ["run", brief, "stage.base.train.checkpoint_every=1", "stage.base.steps=3", "--out", tmp_path / "run", "-q"]
    real, left = checkpoint.save_file, [2]  # a checkpoint is two files

    def save_file(*given: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(*given)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    assert refused(*words).startswith("No space left on device: ")
    base = tmp_path / "run" / "stages" / "base"
    assert sorted(p.name for p in base.iterdir()) == ["step-00000001", "tokenizer"]
    monkeypatch.undo()
    assert mull(*words).code == 0
    steps = [line["step"] for line in Run(tmp_path / "run", Rates(), quiet=True).metrics("base")]
    assert steps == [1, 2, 3]


def test_a_loss_that_is_no_number_stops_with_stage_step_and_checkpoint(refused: Refused, tiny: Path, tmp_path: Path):
    changes = ["optim.lr=1e30", "optim.warmup=0.0", "checkpoint_every=1"]
    changes = [f"stage.base.train.{change}" for change in changes]
    line = refused("run", tiny, *changes, "--out", tmp_path / "run", "--quiet")
    assert line.startswith("Stage base, step ")
    assert "nan" in line or "inf" in line
    found = line.partition("the last good checkpoint is ")[2].partition(".")[0]
    assert Path(found).is_dir()


# what is refused before anything is written


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stage.base.stepz=3", "tiny.toml: stage.base.stepz: there is no such key. Did you mean 'steps'?"),
        ("stage.base.steps=many", "tiny.toml: stage.base.steps: input should be a valid integer"),
        ("stage.base.steps=-1", "tiny.toml: stage.base.steps: input should be greater than 0, not -1."),
        ("stage.base.kind=pretrian", "there is no kind 'pretrian'"),
        ("stage.bass.steps=3", "there is no element 'bass'"),
        ("steps", "'steps' is no override; write key=value"),
        ("stage.taught.init=bass", "needs the model 'bass', which no stage before it makes. Did you mean 'base'?"),
        ("stage.taught.init=student", "Stage 'taught' needs the model 'student', which no stage before it makes."),
        ('stage.exam.models=["exam"]', "Stage 'exam' needs the model 'exam', which no stage before it makes."),
        ("result=studnet", "The result 'studnet' is made by no stage. Did you mean 'student'?"),
        ("stage.taught.name=base", "Two models are named 'base'"),
        ("device=cuda:x", "device = 'cuda:x' is no device; use auto, cpu or cuda."),
        ("model.vocab=100", "Stage 'base': model.vocab = 100 is too small"),
        ('stage.taught.tasks=[{task="gdc"}]', "Stage 'taught': There is no task \"gdc\". Did you mean 'gcd'?"),
        ('stage.taught.tasks=[{task="gym/gcd"}]', "Stage 'taught': gym/gcd has no written solutions to learn from"),
        ('stage.exam.exams=[{task="gcd", size={value=3}}]', 'gcd has no size "value"'),
        ('stage.exam.exams=[{task="gym/gcd", size={value=3}}]', 'gym/gcd has no size "value"'),
        ("stage.exam.samples=2", "2 samples at temperature 0 are the same answer 2 times"),
        ("stage.practised.tasks=[]", "Stage 'practised': it needs tasks to practise on."),
        ("stage.taught.as_long_as=base", "give either steps or as_long_as"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_named_before_anything_is_written(
    refused: Refused, tiny: Path, tmp_path: Path, change: str, said: str
):
    line = refused("run", tiny, change, "--out", tmp_path / "run")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_named_with_the_nearest(refused: Refused, tiny: Path):
    assert "Did you mean 'tiny.toml'?" in refused("run", tiny.with_name("tinny.toml"))
    assert refused("run", "no-such").startswith("There is no recipe 'no-such'.")
    broken = tiny.with_name("broken.toml")
    broken.write_text("name = ")
    assert "broken.toml is not valid TOML" in refused("run", broken)


def test_another_configuration_is_refused_and_nothing_touched(refused: Refused, tiny: Path, done: Path):
    before = content(done)
    line = refused("run", tiny, "stage.base.steps=61", "--out", done)
    assert "holds a run of another configuration (stage.base.steps: 60 there, 61 now)" in line
    assert content(done) == before


def test_a_directory_of_other_things_is_refused(refused: Refused, tiny: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "is not empty and holds no run" in refused("run", tiny, "--out", tmp_path)
    assert "is a file" in refused("run", tiny, "--out", tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_in_use_is_refused(refused: Refused, tiny: Path, tmp_path: Path):
    held = Run.open(tmp_path / "run", recipe.identity(recipe.load(str(tiny), [])), quiet=True)
    before = content(held.path)
    said = process("run", tiny, "--out", held.path)
    assert said.returncode == 2
    assert said.stderr == f"{held.path} is in use by process {os.getpid()}; wait for it or give another --out.\n"
    assert content(held.path) == before
    held.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_one_may_not_write_is_one_line(refused: Refused, tiny: Path, tmp_path: Path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused("run", tiny, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eval x", "Missing option '--task'. `mull eval --help` says what there is."),
        ("ask", "Missing argument 'MODEL'. `mull ask --help` says what there is."),
        ("chta x", "No such command 'chta'. Did you mean 'chat'? `mull --help` says what there is."),
        ("--nope", "No such option: --nope. `mull --help` says what there is."),
        ("ask x y --max-tokens many", "Invalid value for '--max-tokens': Input should be a valid integer, unable to "
         "parse string as an integer. `mull ask --help` says what there is."),
        ("ask x y --max-tokns 3", "(Possible options: --max-tokens). `mull ask --help` says what there is."),
        ("export x", "Missing option '--to'. Choose from: hf, gguf. `mull export --help` says what there is."),
        ("export x --to zip", "Invalid value for '--to': 'zip' is not one of 'hf', 'gguf'. `mull export --help` says"),
        ("chat x --device", "Option '--device' requires an argument. `mull chat --help` says what there is."),
        ("info x --json=3", "Option '--json' does not take a value. `mull info --help` says what there is."),
        *((f"{verb} a b c", "`mull") for verb in ("eval", "chat", "ask", "info", "pull", "export", "report", "tasks")),
        *((f"{verb} --zzz", f"No such option: --zzz. `mull {verb} --help` says what there is.") for verb in VERBS),
    ],
)  # fmt: skip
def test_a_mistake_in_the_words_is_one_line(refused: Refused, words: str, said: str):
    assert said in refused(*words.split())


def test_no_words_at_all_show_the_verbs(mull: Mull):
    assert mull() == mull("--help")


def test_a_bug_shows_its_traceback(tiny: Path, tmp_path: Path):
    code = (
        "import sys; from mull import cli; from mull.stages import recipe\n"
        "def broken(*_): raise RuntimeError('a bug')\n"
        "recipe.load = broken; sys.argv = ['mull', 'demo']; cli.main()"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 1
    assert "Traceback" in said.stderr
    assert "RuntimeError: a bug" in said.stderr


# asking


def test_ask_prints_the_answer_alone_on_stdout(mull: Mull, done: Path):
    plain = json.loads(mull("ask", done, QUESTION, "--json").out)
    assert set(plain) == {
        "text", "reasoning", "finish", "tokens", "thinking_tokens", "prompt_tokens", "seconds", "flops", "kwh", "usd",
    }  # fmt: skip
    said = mull("ask", done, QUESTION)
    assert said.code == 0
    assert said.out.strip() == plain["text"]
    assert f"{plain['tokens']} tokens" in said.err
    assert "$" in said.err


def test_ask_reads_stdin_and_the_same_seed_draws_the_same(mull: Mull, done: Path):
    hot = ["--temperature", "1", "--max-tokens", "20", "--json"]

    def answer(*words: str) -> dict[str, object]:
        found = json.loads(mull("ask", done, "-", *hot, *words, given=QUESTION + "\n").out)
        return {key: found[key] for key in ("text", "reasoning", "tokens")}

    assert answer("--seed", "1") == answer("--seed", "1")
    assert len({str(answer("--seed", str(seed))) for seed in range(5)}) > 1
    assert json.loads(mull("ask", done, QUESTION, "--no-think", "--json").out)["reasoning"] == ""


def test_ask_says_when_an_answer_is_cut_off(mull: Mull, done: Path):
    assert "cut off, still thinking" in mull("ask", f"{done}:taught", QUESTION, "--max-tokens", 1).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "The prompt is empty."),
        (["  "], "The prompt is empty."),
        (["1 " * 200], "this model holds 128, the answer included."),
        (["x", "--max-tokens", "-1"], "max_tokens must be at least 1, not -1."),
        (["x", "--max-tokens", "0"], "max_tokens must be at least 1, not 0."),
        (["x", "--temperature", "-0.5"], "temperature must be 0 (always the likeliest token) or more, not -0.5."),
        (["x", "--temperature", "nan"], "temperature must be"),
        (["x", "--device", "tpu"], "is no device"),
    ],
)
def test_ask_refuses_what_makes_no_sense(refused: Refused, done: Path, words: list[str], said: str):
    assert said in refused("ask", done, *words)


def test_a_model_that_is_not_there_or_damaged_is_one_line(refused: Refused, done: Path, tmp_path: Path):
    assert f"Did you mean '{done.name}'?" in refused("ask", f"{done}x", "x")
    assert "it holds base, practised, student, taught. Did you mean 'student'?" in refused("ask", f"{done}:studen", "x")
    assert "neither a model nor a run" in refused("ask", tmp_path, "x")
    assert "is a file" in refused("ask", done / "report.json", "x")
    model = shutil.copytree(done / "models" / "student", tmp_path / "student")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"\xff" * 1000):
        weights.write_bytes(damage)
        assert str(weights) in refused("ask", model, "x")
    weights.unlink()
    assert f"{model} holds no weights" in refused("ask", model, "x")
    weights.write_bytes(whole)
    (model / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in refused("ask", model, "x")
    shutil.copy(done / "models" / "student" / "tokenizer.json", model)
    (model / "config.json").write_text('{"model_type": "lama"}')
    assert "Did you mean 'llama'?" in refused("ask", model, "x")


def test_a_run_without_a_result_says_what_it_has(refused: Refused, done: Path, tmp_path: Path):
    run = shutil.copytree(done, tmp_path / "run")
    (run / "models" / "result.json").unlink()
    assert f"finished so far: base, practised, student, taught, as {run}:NAME" in refused("chat", run)
    shutil.rmtree(run / "models")
    assert "no model is finished" in refused("ask", run, "x")


def test_chat(mull: Mull, done: Path):
    lines = ["", "/help", QUESTION, "/think off", QUESTION, "/remember on", "hi", "/reset", "/nonsense", "/quit", "no"]
    said = mull("chat", done, "--max-tokens", 8, given="\n".join(lines) + "\n")
    assert said.code == 0
    assert said.err.count(" tok/s") == 3
    assert "each question stands alone" in said.err
    assert "There is no command '/nonsense'" in said.err
    assert "The conversation is forgotten." in said.err
    assert mull("chat", done, given="").code == 0  # the end of the input ends it


# judging, listing, describing


def test_eval_writes_the_same_report(mull: Mull, refused: Refused, done: Path, tmp_path: Path):
    words = ["eval", f"{done}:taught", "--task", "gcd,chain_sum", "--n", 3, "--max-tokens", 8, "--both"]
    said = mull(*words, "--out", tmp_path / "e", "--json")
    assert said.code == 0, said
    found = json.loads(said.out)
    assert {(row["task"], row["thinking"], row["n"]) for row in found["evals"]} == {
        (task, thinking, 3) for task in ("gcd", "chain_sum") for thinking in (True, False)
    }
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert report["evals"] == found["evals"]
    assert (tmp_path / "e" / "report.html").exists()
    again = mull(*words, "--out", tmp_path / "e")
    assert "is finished" in again.err
    assert "chain_sum" in again.out
    words[5] = 4
    assert "another configuration" in refused(*words, "--out", tmp_path / "e")


def test_eval_of_another_model_in_the_same_place_is_another_run(
    mull: Mull, refused: Refused, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(done / "models" / "student", tmp_path / "model")
    words = ["eval", "model", "--task", "gcd", "--n", 2, "--max-tokens", 4, "--quiet"]
    assert mull(*words).code == mull(*words).code == 0
    [folder] = (tmp_path / "runs").iterdir()
    shutil.rmtree(model)
    shutil.copytree(done / "models" / "taught", model)
    assert "another configuration" in refused(*words, "--out", folder)
    assert mull(*words).code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_eval_with_several_samples_draws_at_temperature_one(mull: Mull, done: Path, tmp_path: Path):
    words = ["--task", "gcd", "--n", 2, "--samples", 3, "--max-tokens", 8, "--no-think", "--size", "values=[1,9]"]
    [row] = json.loads(mull("eval", done, *words, "--out", tmp_path / "e", "--json").out)["evals"]
    assert (row["samples"], row["temperature"], row["thinking"], row["size"]) == (3, 1.0, False, {"values": [1, 9]})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", ""], "--task names no task; `mull tasks` lists them."),
        (["--task", "gdc"], "There is no task \"gdc\". Did you mean 'gcd'?"),
        (["--task", ","], "--task names no task"),
        (["--task", "gcd", "--n", "-1"], "mull eval: stage.eval.n: input should be greater than 0, not -1."),
        (["--task", "gcd", "--samples", "0"], "input should be greater than 0, not 0."),
        (["--task", "gcd", "--samples", "2", "--temperature", "0"], "2 samples at temperature 0"),
        (["--task", "gcd", "--split", "train"], "not 'train'"),
        (["--task", "gcd", "--size", "value=2"], 'gcd has no size "value"'),
    ],
)  # fmt: skip
def test_eval_refuses_what_makes_no_sense(refused: Refused, done: Path, tmp_path: Path, words: list[str], said: str):
    assert said in refused("eval", done, *words, "--out", tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_info_of_a_model_and_of_a_run(mull: Mull, refused: Refused, done: Path):
    model = json.loads(mull("info", done / "models" / "taught", "--json").out)
    assert model["kind"] == "model"
    assert model["total_params"] > model["active_params"] > 0
    assert model["config"]["experts"] == 4
    run = json.loads(mull("info", done, "--json").out)
    assert (run["kind"], run["result"], run["family"]) == ("run", "student", "llama")
    assert run["total_params"] == run["active_params"] > 0
    assert run["total"]["usd"] > 0
    shown = mull("info", done).out
    assert "student" in shown
    assert "active per token" in shown
    assert json.loads(mull("info", f"{done}:taught", "--json").out) == {
        **model, "path": str(done / "models" / "taught"),
    }  # fmt: skip
    assert "There is no model or run at" in refused("info", done / "nothing")


def test_report_is_written_again(mull: Mull, refused: Refused, done: Path, tmp_path: Path):
    run = shutil.copytree(done, tmp_path / "run")
    (run / "report.html").unlink()
    said = mull("report", run)
    assert said.out.strip() == str(run / "report.html")
    assert (run / "report.html").exists()
    assert "holds no run" in refused("report", done / "models" / "student")


def test_tasks_are_listed_and_shown(mull: Mull, refused: Refused):
    listed = json.loads(mull("tasks", "--json").out)["tasks"]
    assert {"name": "gcd", "about": "greatest common divisor of two numbers from 1 to 999"} in listed
    assert "gym/sudoku" in mull("tasks").out
    shown = mull("tasks", "chain_sum", "--n", 2, "--size", "terms=2")
    assert shown.out.count("-> ") == 2
    problems = json.loads(mull("tasks", "gcd", "--n", 2, "--json").out)["problems"]
    assert all(problem["solution"].endswith(problem["answer"]) for problem in problems)
    assert "Did you mean 'gym/sudoku'?" in refused("tasks", "sudoku")
    assert "cannot be -1" in refused("tasks", "gcd", "--n", "-1")


def test_bundled_recipes_are_listed_and_sound(mull: Mull):
    listed = json.loads(mull("recipes", "--json").out)["recipes"]
    assert [one["name"] for one in listed] == sorted(recipe.bundled())
    for one in listed:
        assert recipe.load(one["name"], []).name == one["name"]
        assert one["about"]
    assert "demo" in recipe.bundled()


def test_the_price_of_an_answer_is_the_runs(mull: Mull, done: Path, tmp_path: Path):
    run = shutil.copytree(done, tmp_path / "run")
    opened = json.loads((run / "config.json").read_text())
    opened["config"]["rates"] = Rates(usd_per_hour=3600.0).model_dump()
    opened["fingerprint"] = fingerprint(opened["config"])
    (run / "config.json").write_text(json.dumps(opened))
    found = json.loads(mull("ask", run, "x", "--max-tokens", 2, "--json").out)
    assert found["usd"] == pytest.approx(found["seconds"], abs=1e-5)


@pytest.mark.parametrize("name", ["file/x", "n" * 300])
def test_an_out_that_cannot_be_a_directory_is_one_line(refused: Refused, brief: Path, tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    line = refused("run", brief, "--out", tmp_path / name)
    assert line.endswith((": Not a directory.", ": File name too long."))


def test_the_verbs_are_not_cut(mull: Mull):
    assert "..." not in mull("--help").out.partition("Commands:")[2]
