#!/usr/bin/env bash
# Real clients against a real server: OpenAI's Python client, a fuzzer that reads the API's description, a browser.
# Needs Python 3.10 or newer, Node and Chromium; gets the rest from PyPI and npm into $TOOLS.
#   tests/clients/run.sh target/release/flamingo
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
flamingo="$(realpath "${1:?which flamingo}")"
tools="${TOOLS:-$HOME/.cache/openflamingo-rs/clients}"
mkdir -p "$tools"
cd "$here/../.."

if ! cmp -s "$here/requirements.txt" "$tools/requirements.txt"; then
  rm -rf "$tools/venv"
  python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install -q -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$tools/requirements.txt"
fi

log="$(mktemp -d)"
"$flamingo" serve --device flex --port 0 >"$log/address" &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$log"' EXIT
for _ in $(seq 100); do [ -s "$log/address" ] && break; sleep 0.1; done
[ -s "$log/address" ] || { echo "the server does not start" >&2; exit 1; }
BASE_URL="$(cat "$log/address")"
export BASE_URL

echo "--- OpenAI's client"
"$tools/venv/bin/python" "$here/openai_client.py"

echo "--- schemathesis"
# A schema cannot say that a picture must be one, or that a prompt may not be empty: such requests are refused, not accepted.
(cd "$log" && "$tools/venv/bin/schemathesis" run "$BASE_URL/openapi.json" --checks all \
  --exclude-checks positive_data_acceptance --max-examples "${EXAMPLES:-50}" --seed 1 --warnings off)

echo "--- a browser"
export CHROMIUM="${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}"
(cd tests/browser && npm ci --silent --no-audit --no-fund && node playground.mjs)
kill -0 $server
echo "--- the server is alive"
