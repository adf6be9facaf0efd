"""What secrets look like in a text, and the names that they go under."""

from __future__ import annotations

import re

MARK = "***"
"""Stands where a secret was."""

_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{20,} | api_org_[A-Za-z0-9]{20,}                        # Hugging Face
      | wandb_v\d+_[A-Za-z0-9_-]{20,}
      | sk-(?=[A-Za-z_-]{0,40}\d)[A-Za-z0-9_-]{20,}                                # OpenAI, Anthropic and others
      | (?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])                              # AWS
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,} | glpat-[A-Za-z0-9_-]{20,}
      | xox[abprs]-[A-Za-z0-9-]{10,} | AIza[A-Za-z0-9_-]{35} | pypi-[A-Za-z0-9_-]{50,}
      | eyJ[A-Za-z0-9_-]{10,999}\.eyJ[A-Za-z0-9_-]{10,9999}\.[A-Za-z0-9_-]{10,}      # a JSON web token
    )""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_IN_URL = re.compile(r"(://[^\s/:@\"'<>]*):[^\s/\"'<>]+@")
_ALONE_IN_URL = re.compile(r"(https?://)[^\s/:@\"'<>]{16,}@")
_HEADER = re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?:(bearer|basic|token|digest)\s+)?[^\s\"',]+")
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?=\S{0,40}\d)[A-Za-z0-9._~+/=-]{16,}")
_WANDB = re.compile(r"(?i)(wandb(?:[\w.:/-]|[\"'= ]){0,40}?)(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")
_NAMED = re.compile(
    r"""(?P<head>(?<![\w.-])(?P<dashes>--)?(?P<quote>["']?)
        (?P<name>[\w.-]{0,80}(?:key|token|secret|passw|passphrase|credential)[\w.-]{0,80})
        (?P=quote)(?P<joint>\s*[:=]\s*|\s+))
        (?P<value>"[^"\n]+"|'[^'\n]+'|[^\s"',;{}\[\]()&]+)""",
    re.VERBOSE | re.IGNORECASE,
)
_PROSE = 5  # letters; a word below that after `password:` is one of a sentence, such as `must`

_CERTAIN = {"password", "passwords", "passwd", "passphrase", "secret", "secrets", "apikey", "apikeys", "credential",
            "credentials", "authorization"}  # fmt: skip
_BEFORE_KEY = {"api", "access", "secret", "private", "auth", "encryption", "signing", "service", "account", "storage",
               "master", "deploy", "ssh", "wandb"}  # fmt: skip
_BEFORE_TOKEN = {"access", "auth", "api", "hf", "hub", "refresh", "bearer", "session", "security", "id", "github",
                 "gitlab", "wandb", "upload", "huggingface", "private", "personal"}  # fmt: skip
_ABOUT = {"path", "file", "dir", "folder", "sock", "type", "kind", "length", "count", "limit", "env"}


def looks_secret(name: str) -> bool:
    """Whether a field or option of this name holds a secret: `api_key`, `--x.password`, but not `bos_token`."""
    last = name.strip("-+\"' ").rpartition(".")[2]
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()) if word]
    if not words or words[-1] in _ABOUT:
        return False
    if _CERTAIN & set(words) or words[-1].endswith(("password", "passwd", "apikey")):
        return True
    before = words[-2] if len(words) > 1 else None
    if words[-1] in ("key", "keys"):
        return before in _BEFORE_KEY
    return words[-1] == "token" and (before is None or before in _BEFORE_TOKEN)


def without_shapes(text: str) -> str:
    """`text` with `***` for all that looks like a secret, or stands after the name of one."""
    text = _PRIVATE_KEY.sub(rf"\1{MARK}\2", text)
    text = _ALONE_IN_URL.sub(rf"\1{MARK}@", _IN_URL.sub(rf"\1:{MARK}@", text))
    text = _HEADER.sub(lambda found: f"{found[1]}{found[2] + ' ' if found[2] else ''}{MARK}", text)
    text = _WANDB.sub(rf"\1{MARK}", _BEARER.sub(rf"\1{MARK}", text))
    return _TOKENS.sub(MARK, _NAMED.sub(_blot, text))


def _blot(found: re.Match[str]) -> str:
    """`name: value` without its value, where the name is that of a secret and the value no word of a sentence."""
    value, joint = found["value"], found["joint"].strip()
    quoted = value[0] in "\"'"
    bare = found["name"].rpartition(".")[2].lower() == "token" and not found["quote"] and joint == ":"
    if not looks_secret(found["name"]) or bare or value.strip("\"'").lower() in ("null", "none", "true", "false"):
        return found[0]
    if joint == "" and (not found["dashes"] or value.startswith("-")):
        return found[0]
    if joint != "=" and not quoted and len(value) < _PROSE:
        return found[0]
    return f"{found['head']}{value[0]}{MARK}{value[0]}" if quoted else f"{found['head']}{MARK}"
