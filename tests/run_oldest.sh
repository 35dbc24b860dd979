#!/usr/bin/env bash
# requirements.txt が許す最も古い版でテストを実行する。使い方: bash tests/run_oldest.sh [python3.10]
# 仮想環境は OLDEST_VENV（既定: .venv-oldest）に作り、次からは使い回す。
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3.10}
venv=${OLDEST_VENV:-.venv-oldest}
if [ ! -x "$venv/bin/pytest" ]; then
    "$python" -m venv "$venv"
    sed -n 's/>=/==/p' requirements.txt >"$venv/oldest.txt"
    # 新しい pyparsing は、古い matplotlib の import で警告を出す
    "$venv/bin/pip" install -r "$venv/oldest.txt" "pyparsing<3.2" pytest pytest-xdist ruff
fi
"$venv/bin/python" -m pytest
