#!/usr/bin/env bash
# テストを、ほかのマシンと同じ丸めの計算で実行する。使い方: bash tests/run_machines.sh [pytest の引数]
# 順に、このマシンのまま、AVX2 まで、SSE4 まで、1 つのプロセスで 2 スレッド、4 スレッド。2 コアで 75 分ほどかかる。
set -uo pipefail
cd "$(dirname "$0")/.."
pytest=${PYTEST:-.venv/bin/pytest}
settings=(
    ""
    "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2"
    "OMP_NUM_THREADS=2 PYTEST_ADDOPTS=-n0"
    "OMP_NUM_THREADS=4 PYTEST_ADDOPTS=-n0"
)
status=0
for setting in "${settings[@]}"; do
    echo "=== ${setting:-as is}"
    # shellcheck disable=SC2086  # 空白で区切った 名前=値 を、env に 1 つずつ渡す
    env $setting "$pytest" -q "$@" || status=1
done
exit $status
