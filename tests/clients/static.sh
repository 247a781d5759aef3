#!/usr/bin/env bash
# A browser against the static page that `cargo xtask web` makes, below a folder of a plain file server. Needs Python, Node and
# Chromium.
#   tests/clients/static.sh SITE
set -euo pipefail
site="$(realpath "${1:?which site}")"
cd "$(dirname "$0")/../browser"
log="$(mktemp)"
python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$(dirname "$site")" >"$log" 2>/dev/null &
server=$!
trap 'kill $server 2>/dev/null; rm -f "$log"' EXIT
for _ in $(seq 100); do grep -q port "$log" && break; sleep 0.1; done
port="$(sed -n 's/.* port \([0-9]*\).*/\1/p' "$log")"
export CHROMIUM="${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}"
npm ci --silent --no-audit --no-fund
STATIC=1 BASE_URL="http://127.0.0.1:$port/$(basename "$site")/" node playground.mjs
