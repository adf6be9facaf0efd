"""What an exported folder does where sinktrain is not importable. A program: probe.py FOLDER QUESTIONS.json ANSWERS.

It needs torch, transformers and safetensors alone, and is run as a file, never imported. QUESTIONS holds `ids` (rows of
token ids), `texts`, `chat` (a list of messages, or null), `cache` and `new_tokens`. ANSWERS becomes a folder with
`logits.safetensors` and `answers.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.modules["sinktrain"] = None  # type: ignore[assignment]  # an import of it fails as if it were not installed

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def tokenized(tokenizer: Any, questions: dict[str, Any]) -> dict[str, Any]:
    """Token ids by the way in which a text is given."""
    texts, chat = questions["texts"], questions["chat"]
    padded = tokenizer.pad_token is not None
    found = {
        "plain text": [tokenizer(text).input_ids for text in texts],
        "encode": [tokenizer.encode(text) for text in texts],
        "a pair": [tokenizer(texts[0], texts[1]).input_ids],
        "a batch": tokenizer(texts, padding=padded).input_ids,
        "tensors": [tokenizer(text, return_tensors="pt").input_ids[0].tolist() for text in texts],
    }
    if chat is not None and tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        found["chat"] = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]]
        found["chat, as text"] = [tokenizer(rendered, add_special_tokens=False).input_ids]
    return found


def main(folder: str, questions: dict[str, Any], answers: Path) -> None:
    """Asks everything, then writes the answers."""
    torch.set_num_threads(questions["threads"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as again:
        tokenizer.save_pretrained(again)
        reloaded = tokenized(AutoTokenizer.from_pretrained(again), questions)
    found = {**tokenized(tokenizer, questions), **{f"{way}, saved again": ids for way, ids in reloaded.items()}}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ids = torch.tensor(questions["ids"])
    with torch.no_grad():
        logits = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
    prompt, options = ids[:1, : questions["prompt"]], {"max_new_tokens": questions["new_tokens"], "do_sample": False}
    options["attention_mask"] = torch.ones_like(prompt)
    plain = model.generate(prompt, **options)
    generated = {"generate": plain[0].tolist()}
    if questions["run_code"]:  # it is what this sinktrain writes
        streamed = model.generate(
            prompt, custom_generate=folder, trust_remote_code=True, cache=questions["cache"], eos_token_id=-1, **options
        )
        generated["custom_generate"] = streamed[0].tolist()
    answers.mkdir()
    save_file({"logits": logits.float().contiguous()}, answers / "logits.safetensors")
    record = {"tokenized": found, "generated": generated, "dtype": str(model.dtype).removeprefix("torch."),
              "suppressed": model.generation_config.suppress_tokens or []}  # fmt: skip
    (answers / "answers.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
