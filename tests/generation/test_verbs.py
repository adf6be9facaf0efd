"""`sinktrain generate` and `sinktrain chat` as processes: pipes, signals, exit statuses, and who writes where."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_subjects import save_subject, small_subject
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinktrain import cli
from sinktrain.cli import main
from sinktrain.streaming import SinkCache

COMMAND = [sys.executable, "-m", "sinktrain.cli"]
MODEL = ["--model.device", "cpu", "--model.name"]


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_subject(small_subject(tokenizer_folder), tmp_path_factory.mktemp("small"))


def start(*arguments: str) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *arguments], bufsize=0, **pipes)  # type: ignore[call-overload,no-any-return]


@dataclass
class Done:
    status: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command line in this process, which takes a tenth of the time of a new one."""

    def call(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        status = main(arguments)
        return Done(status, *capfd.readouterr())

    return call


def test_the_text_is_that_of_generate_and_stands_alone_on_stdout(folder: Path, call: Call) -> None:
    options = ["--temperature", "0", "--max_tokens", "50", "--cache", "1+15"]
    done = call("generate", *MODEL, str(folder), *options, stdin=b"the cat sat")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    cache = SinkCache.for_model(model, "1+15")
    tokens = model.generate(
        input_ids=ids, past_key_values=cache, do_sample=False, max_new_tokens=50, eos_token_id=None, pad_token_id=0
    )[0, ids.shape[1] :]
    assert ids[0, 0] == tokenizer.bos_token_id and done.status == 0
    assert done.out == tokenizer.decode(tokens, skip_special_tokens=True) and done.out.strip()
    for words in ("read: 4 tokens", "generated: 50 tokens", "1+15", "37 evicted", "MiB", "tokens/s"):
        assert words in done.err
    assert "warning" not in done.err


def test_head_ends_it_quietly(folder: Path) -> None:
    process = start("generate", *MODEL, str(folder), "--prompt", "the cat")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(100)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in err and "Broken" not in err and "generated:" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_end_it_with_statistics(number: int, status: int, folder: Path) -> None:
    process = start("generate", *MODEL, str(folder), "--prompt", "the cat")
    assert process.stdout is not None
    begun = process.stdout.read(30)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status and begun
    assert b"Traceback" not in err and b"generated: " in err and b"evicted" in err
    (begun + out).decode()  # whole characters, to the end


def test_control_c_before_all_that_was_asked_for(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's `&` leaves it ignored
    written: list[str] = []

    def write_and_interrupt(text: str) -> None:
        written.append(text)
        if len(written) == 9:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sinktrain.generation.generate.write", write_and_interrupt)
    done = call("generate", *MODEL, str(folder), "--prompt", "the cat", "--max_tokens", "1000")
    assert done.status == 130 and "generated: 9 tokens" in done.err
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGTERM) is cli._stop


def test_prompts_from_everywhere(folder: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "prompt.txt").write_text("the dog ran to it")
    common = ["generate", *MODEL, str(folder), "--max_tokens", "8", "--seed", "3"]
    texts = [
        call(*common, "--prompt", "the dog ran to it").out,
        call(*common, "--prompt_file", str(tmp_path / "prompt.txt")).out,
        call(*common, "--prompt", "-", stdin=b"the dog ran to it").out,
        call(*common, stdin=b"the dog ran to it").out,
    ]
    assert texts[0] and len(set(texts)) == 1
    alone = call(*common, "--prompt", "", stdin=b"the dog ran to it")
    assert alone.out != texts[0] and "read: 1 tokens" in alone.err  # the sink
    wrong = call(*common, stdin=b"caf\xe9")
    assert wrong.status == 2 and "--prompt -: is not UTF-8" in wrong.err and wrong.out == ""


def test_an_end_token_ends_it_when_asked_to(folder: Path, call: Call) -> None:
    common = ["generate", *MODEL, str(folder), "--prompt", "the cat", "--temperature", "5", "--top_p", "1"]
    common += ["--special", "true", "--max_tokens", "2000"]
    stopped, endless = call(*common, "--stop_at_end", "true"), call(*common)
    assert stopped.out.endswith("<|endoftext|>") and endless.out.startswith(stopped.out)
    assert "generated: 2000 tokens" in endless.err and "generated: 2000 tokens" not in stopped.err


def test_warnings_go_to_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *MODEL, str(folder), "--prompt", "the", "--max_tokens", "0", "--cache", "0+900"]) == 0
    out, err = capfd.readouterr()
    assert out == "" and "holds 900 positions, but the model was trained for 512" in err and "0 of the 1 sinks" in err


MISTAKES = {
    "generate --prompt a --prompt_file b": "--prompt_file",
    "generate --prompt_file nowhere.txt": "--prompt_file nowhere.txt",
    "generate --prompt a --temperature -1": "--temperature",
    "generate --prompt a --top_p 0": "--top_p",
    "generate --prompt a --top_k -1": "--top_k",
    "generate --prompt a --max_tokens -1": "--max_tokens",
    "generate --prompt a --cache 1+0": "--cache",
    "chat --max_tokens 0": "--max_tokens",
    "chat --cache 5": "--cache",
}


@pytest.mark.parametrize("line", list(MISTAKES))
def test_mistakes_are_one_sentence(line: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verb, *options = line.split()
    assert main([verb, *MODEL, str(folder), *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"sinktrain {verb}: ") and MISTAKES[line] in err
    assert len(err.splitlines()) == 1 and err.endswith(".\n")


def test_an_empty_prompt_without_sink_or_bos(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *MODEL, str(model_folder), "--prompt", ""]) == 2
    assert "--prompt: is empty" in capfd.readouterr().err


def test_a_chat_through_a_pipe(folder: Path, call: Call) -> None:
    common = ["chat", *MODEL, str(folder), "--max_tokens", "6", "--temperature", "0"]
    lines = b"the cat\n/stats\n\n/help\n/nonsense\nthe cat\n/reset\nthe cat\n/quit\nhome\n"
    done = call(*common, stdin=lines)
    once, again = call(*common, stdin=b"the cat\n"), call(*common, stdin=b"the cat\nthe cat\n")
    assert done.status == once.status == again.status == 0
    assert done.out == again.out + once.out  # the reset forgets, and nothing comes after /quit
    assert again.out.startswith(once.out) and again.out != 2 * once.out and once.out.strip()
    assert "/nonsense is no command" in done.err and "/reset  start a new conversation" in done.err
    assert done.err.count("generated: ") == 2 and "generated: 18 tokens" in done.err


def test_control_c_stops_one_reply_of_a_chat_and_sigterm_ends_it(folder: Path) -> None:
    process = start("chat", *MODEL, str(folder), "--max_tokens", "inf", "--temperature", "0")
    assert process.stdin is not None and process.stdout is not None
    for _ in range(2):
        process.stdin.write(b"the cat\n")
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        while process.stdout.read(1) != b"\n":  # the rest of the reply
            pass
    process.stdin.write(b"the dog\n")
    assert process.stdout.read(1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and b"Traceback" not in err and b"generated: " in err


def test_a_model_without_a_template(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", *MODEL, str(model_folder)]) == 2
    assert "has no chat template" in capfd.readouterr().err
