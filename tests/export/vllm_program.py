"""vLLM, in an environment of its own: vllm_program.py MODEL QUESTIONS.json ANSWERS.json

QUESTIONS holds `texts`, and `new_tokens` to go on with; ANSWERS the ids of each prompt, the log-probability of each of
its tokens but the first, and the tokens that follow greedily.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(model: str, questions: dict[str, Any], answers: Path) -> None:
    """Asks and writes."""
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, dtype=questions["dtype"], enforce_eager=True, max_model_len=256, seed=0)
    wanted = SamplingParams(
        temperature=0, max_tokens=questions["new_tokens"], prompt_logprobs=0, logprobs=0, ignore_eos=True
    )
    found = []
    for output in engine.generate(questions["texts"], wanted):
        prompt = list(output.prompt_token_ids)
        logprobs = [each[index].logprob for index, each in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
        found.append({"prompt": prompt, "logprobs": logprobs, "made": list(output.outputs[0].token_ids)})
    answers.write_text(json.dumps({"version": __import__("vllm").__version__, "found": found}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
