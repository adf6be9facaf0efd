#!/usr/bin/env bash
# Streams 4,000,000 tokens through a small model and shows that nothing drifts: ./scripts/stream_4m.sh
# Trains a byte-level model of 0.6 million parameters for a minute or two on the standard library's sources with a sink
# in front of every sample, streams 4,000,000 bytes that it has not seen through a cache of 1+255, and leaves
# runs/stream_4m/stream.{json,svg,png}. Ends with status 1 if memory grows by over 5% once the cache is full, or if the
# NLLs at tokens 1, 2, 3 and 4 million are not those of a stream that started shortly before. About 5 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python scripts/stream_4m.py "$@"
