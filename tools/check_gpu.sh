#!/usr/bin/env bash
# All that is to be seen of facemetric on a GPU, in one command, with a table at the end; a step that fails is a line.
#   tools/check_gpu.sh OUT [--device cuda|cpu] [--quick]
#     OUT       folder for logs, runs and table.md
#     --device  cpu is a rehearsal: the same steps, with small numbers
#     --quick   small numbers on a GPU too
# Needs pip install -e '.[test]'. About an hour on one GPU.
set -u
out=${1:?tools/check_gpu.sh OUT [--device cuda|cpu] [--quick]}
shift
device=cuda quick=
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift 2 ;;
        --quick) quick=1; shift ;;
        *) echo "check_gpu.sh: unknown option $1" >&2; exit 2 ;;
    esac
done
[ "$device" = cpu ] && quick=1
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd)
cd "$root" || exit 2
export PYTHONPATH=$root:$root/tests:$root/tools${PYTHONPATH:+:$PYTHONPATH}
table=$out/table.md failed=0
printf '| step | result | seconds | last line |\n|---|---|---|---|\n' >"$table"

step() {  # name, seconds it may take, command
    local name=$1 limit=$2 began=$SECONDS result=ok code
    shift 2
    echo "== $name" >&2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    [ $code -eq 124 ] && result="out of time"
    [ $code -ne 0 ] && [ $code -ne 124 ] && result="FAILED ($code)"
    [ $code -ne 0 ] && failed=$((failed + 1))
    printf '| %s | %s | %s | %s |\n' "$name" "$result" $((SECONDS - began)) \
        "$(grep -v '^ *$' "$out/$name.log" | tail -n 1 | tr '|' '/' | cut -c1-200)" >>"$table"
}

tests=(python -m pytest -q -p no:cacheprovider tests/mining/kernels)
if [ "$device" = cuda ]; then
    step machine 60 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    step tests-compiled 1800 env TRITON_INTERPRET=0 CUDA_VISIBLE_DEVICES=0 "${tests[@]}/test_gpu.py" \
        tests/data/test_device_transforms.py
else
    step machine 60 uname -mrs
fi
step versions 60 python -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda)'
step tests-interpreted 1800 "${tests[@]}"
step compiled-for 1200 python tools/compile_kernels.py --capability 80 90
if [ "$quick" ]; then
    mining=(--sizes 64 256 --rounds 2 --dim 32 --images 4 --measure time)
    losses=(--sizes 64 256 --rounds 1 --measure time)
    steps=(--arch lcnet_050 --size 64 --batch 16 --steps 3 --rounds 1 --workers 0)
else
    mining=(--sizes 1024 4096 16384 65536 --dim 128 512 --images 4 32)
    losses=(--sizes 1024 4096 16384)
    steps=(--arch resnet50 --size 112 --batch 256 --workers "$(nproc)")
fi
step bench-mining 3600 python tools/bench_mining.py --device "$device" "${mining[@]}"
if [ "$device" = cuda ]; then
    for precision in tf32 bfloat16; do
        step "bench-picking-$precision" 1200 python tools/bench_mining.py --device cuda --picking "$precision" \
            --contenders facemetric --miners semihard hard "${mining[@]}"
    done
fi
step bench-losses 1800 python tools/bench_losses.py --device "$device" "${losses[@]}"
step training 1800 python tools/check_training.py "$out/training" --device "$device"
for where in cpu device; do
    step "loader-to-device-varied-on-$where" 1200 python tools/bench_steps.py "$out/training/faces" --device "$device" \
        --augment-on "$where" "${steps[@]}"
done
cat "$table"
exit $((failed > 0))
