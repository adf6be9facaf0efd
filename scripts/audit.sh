#!/usr/bin/env bash
# Are the pinned dependencies known to be unsafe? Asks the vulnerability services through pip-audit.
#
#     scripts/audit.sh                 constraints.txt
#     scripts/audit.sh FILE            another file of pins
#     PIP_AUDIT=/path/to/pip-audit scripts/audit.sh
#
# Status 0: nothing is known against them. 1: something is, or a malicious release is pinned. 2: could not be found out.
# pip-audit is no dependency: it is found on the PATH, or put into a virtual environment that is thrown away afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

file=${1:-constraints.txt}
service=${PIP_AUDIT_SERVICE:-osv} # knows of malicious releases, too; `pypi` is the other
unknown() { printf 'audit: %s\n' "$*" >&2; exit 2; }

[[ -r $file ]] || unknown "$file cannot be read; name a file of pins."
if bad=$(grep -iE '^(pytorch[-_.])?lightning *={2,3} *2\.6\.[23]([^0-9]|$)' "$file"); then # known without any network
    printf 'audit: %s pins a malicious release, %s; take lightning 2.6.6.\n' "$file" "${bad//$'\n'/, }" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tool=${PIP_AUDIT:-}
if [[ -z $tool ]] && command -v pip-audit >/dev/null; then tool=pip-audit; fi
if [[ -z $tool ]]; then
    python=${PYTHON:-python3}
    if [[ -x .venv/bin/python && -z ${PYTHON:-} ]]; then python=.venv/bin/python; fi
    { "$python" -m venv "$work/venv" && "$work/venv/bin/pip" install -qq pip-audit; } >"$work/log" 2>&1 ||
        unknown "pip-audit could not be installed ($(tail -n 1 "$work/log")); name one with PIP_AUDIT=/path/to/pip-audit."
    tool=$work/venv/bin/pip-audit
fi

# Its status is 1 both for a vulnerability and for a service that it could not ask. Only a complete report counts.
status=0
"$tool" --requirement "$file" --no-deps --disable-pip --vulnerability-service "$service" --timeout 20 \
    --progress-spinner off --format json --output "$work/report.json" >"$work/log" 2>&1 || status=$?
python3 - "$work/report.json" "$file" <<'PYTHON' || unknown_status=$?
import json, re, sys
try:
    found = json.load(open(sys.argv[1]))["dependencies"]
except (OSError, ValueError, KeyError, TypeError):
    sys.exit(2)
pins = [line for line in open(sys.argv[2]) if re.match(r"[A-Za-z0-9]", line)]
skipped = [each for each in found if "skip_reason" in each]
for each in skipped:
    print(f"audit: {each['name']}: {each['skip_reason']}", file=sys.stderr)
if skipped or len(found) < len(pins):
    sys.exit(2)
bad = [(each["name"], each["version"], vulnerability) for each in found for vulnerability in each["vulns"]]
for name, version, vulnerability in bad:
    fixed = ", ".join(vulnerability.get("fix_versions") or ["no release yet"])
    print(f"{name} {version}: {vulnerability['id']} (fixed in {fixed})")
print(f"audit: {len(found)} packages, {len(bad)} known vulnerabilities")
sys.exit(1 if bad else 0)
PYTHON
case ${unknown_status:-0} in
    0) [[ $status == 0 ]] || unknown "pip-audit ended with status $status ($(tail -n 1 "$work/log")); nothing is known." ;;
    1) exit 1 ;;
    *) unknown "the service $service could not be asked about all of $file ($(tail -n 1 "$work/log" | cut -c 1-200)), so" \
        "nothing is known; run this again where the network reaches it." ;;
esac
