#!/usr/bin/env bash
# All that is to be seen of facemetric on a GPU, in one command, with a table at the end; a step that fails is a line.
#   tools/check_gpu.sh OUT [--device cuda|cpu] [--quick] [--only STEP[,STEP...]] [--minutes N] [--list]
#     OUT        folder for logs, runs and table.md, which is written anew after every step; steps that are ok in it are
#                not run again, so the same command goes on after whatever stopped it
#     --device   cpu is a rehearsal: the same steps, with small numbers
#     --quick    small numbers on a GPU too
#     --only     these steps alone, also where they are ok already; a name's beginning means all that begin so
#     --minutes  begin nothing after so many, and cut what runs then: the same command goes on
#     --list     the names of the steps, and the seconds that each may take at most
# Needs pip install -e '.[test]' (the first step says what is missing), and no network. No step may take over nine
# minutes. What it takes on a GPU nobody has seen yet; the most important steps come first.
set -u
usage="tools/check_gpu.sh OUT [--device cuda|cpu] [--quick] [--only STEP,...] [--minutes N] [--list]"
case ${1:-} in '' | -*) echo "$usage" >&2; exit 2 ;; esac
out=$1
shift
device=cuda quick='' only='' minutes=0 list=''
while [ $# -gt 0 ]; do
    case $1 in
        --device | --only | --minutes)
            [ $# -gt 1 ] || { echo "check_gpu.sh: $1 needs a value" >&2; exit 2; }
            case $1 in --device) device=$2 ;; --only) only=$2 ;; --minutes) minutes=$2 ;; esac
            shift 2 ;;
        --quick) quick=1; shift ;;
        --list) list=1; shift ;;
        *) echo "check_gpu.sh: unknown option $1; $usage" >&2; exit 2 ;;
    esac
done
case $device in cuda | cpu) ;; *) echo "check_gpu.sh: --device is $device; it is cuda or cpu" >&2; exit 2 ;; esac
case $minutes in *[!0-9]*) echo "check_gpu.sh: --minutes is $minutes; it is a whole number" >&2; exit 2 ;; esac
[ "$device" = cpu ] && quick=1
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "$list" ]; then
    rows=rows-$device${quick:+-quick}
    mkdir -p "$out/$rows" && out=$(cd "$out" && pwd) || exit 2
    rows=$out/$rows
    rm -f "$rows"/*.left "$rows"/*-packages.row  # what is installed may have changed
fi
cd "$root" || exit 2
export PYTHONPATH=$root:$root/tests:$root/tools${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=$(command -v python || command -v python3) || { echo "check_gpu.sh: no python on the PATH" >&2; exit 2; }
number=0 failed=0 left=0 known=''

table() {  # table.md: the rows of all steps so far, then the end of what each said
    {
        printf '| step | result | seconds | last line |\n|---|---|---|---|\n'
        cat "$rows"/*.row "$rows"/*.left 2>/dev/null
        for row in "$rows"/*.row; do
            [ -e "$row" ] || continue
            name=$(basename "$row" .row) && name=${name#*-}
            printf '\n## %s\n\n```\n%s\n```\n' "$name" "$(tail -n 60 "$out/$name.log" | cut -c1-400)"
        done
    } >"$out/table.new" && mv "$out/table.new" "$out/table.md"
}

chosen() {  # whether --only names a step
    local each
    for each in ${only//,/ }; do [[ $1 == "$each"* ]] && return 0; done
    return 1
}

step() {  # name, seconds it may take, command
    local name=$1 limit=$2 began=$SECONDS code result=ok line row
    shift 2
    number=$((number + 1)) known="$known $name"
    if [ -n "$list" ]; then printf '%-28s %4d s\n' "$name" "$limit"; return; fi
    row=$rows/$(printf '%02d' $number)-$name.row
    if [ -n "$only" ]; then chosen "$name" || return; fi
    if [ -z "$only" ] && grep -q '^| [^|]* | ok |' "$row" 2>/dev/null; then return; fi
    if [ "$minutes" -gt 0 ]; then
        local rest=$((minutes * 60 - SECONDS))
        if [ $rest -lt 15 ]; then
            left=$((left + 1))
            [ -e "$row" ] || printf '| %s | not begun | | |\n' "$name" >"${row%.row}.left"
            return
        fi
        [ $rest -lt "$limit" ] && limit=$rest
    fi
    echo "== $name (at most $limit s)"
    timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    if [ $code -ne 0 ] && [ $((SECONDS - began)) -ge "$limit" ]; then result="cut after $limit s"
    elif [ $code -ne 0 ]; then result="FAILED ($code)"; fi
    [ $code -ne 0 ] && failed=$((failed + 1))
    line=$(grep -v '^ *$' "$out/$name.log" | tail -n 1 | tr '|' '/' | cut -c1-200)
    printf '| %s | %s | %s | %s |\n' "$name" "$result" $((SECONDS - began)) "$line" | tee "$row"
    [ $code -ne 0 ] && tail -n 15 "$out/$name.log" | cut -c1-400
    table
}

packages=(torch torchvision timm numpy pandas PIL sklearn scipy cyclopts safetensors huggingface_hub tqdm matplotlib
    jinja2 tensorboard onnx onnxruntime pyarrow pytest hypothesis pytorch_metric_learning)
[ "$device" = cuda ] && packages+=(triton)
look='
import importlib.metadata as m, importlib.util as u, sys
lost = [name for name in sys.argv[1:] if u.find_spec(name) is None]
try: m.version("facemetric")
except m.PackageNotFoundError: lost.append("facemetric (pip install --no-deps .)")
import torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print("python", sys.version.split()[0], "torch", torch.__version__, "cuda", torch.version.cuda, "GPU", gpu)
print("missing: " + ", ".join(lost) if lost else "every package is there; GPU: " + gpu)
sys.exit(bool(lost) or (sys.argv[-1] == "triton" and gpu == "none"))'
tests=("$python" -m pytest -q -p no:cacheprovider --durations 5)
# The tests of one GPU by several processes, where pytest-xdist is installed: compiling is what takes long.
[ "$device" = cuda ] && "$python" -c 'import xdist' >/dev/null 2>&1 && tests+=(-n 8)
if [ "$quick" ]; then
    mining=(--sizes 64 256 --rounds 2) sizes="32" images="4"
    losses=(--sizes 64 256 --rounds 1 --measure time)
    head=(--identities 2000 --dim 32 --batch 32 --steps 2 --processes 1)
    pairs=2000 gallery=2000 templates=500
    changes=(--sizes 256 --batches 1)
    loader=(--arch lcnet_050 --size 64 --batch 16 --steps 3 --rounds 1 --workers 0)
else
    mining=(--sizes 1024 4096 16384 65536 --rounds 5) sizes="128 512" images="4 32"
    losses=(--sizes 1024 4096 16384 --measure time)
    head=(--identities 1000000 --dim 512 --batch 512 --steps 10 --processes 1)
    pairs=200000 gallery=100000 templates=100000
    changes=(--sizes 1024 4096)
    loader=(--arch resnet50 --size 112 --batch 256 --workers "$(nproc)")
fi
bench=("$python" tools/bench_mining.py --device "$device" "${mining[@]}")

step packages 120 "$python" -c "$look" "${packages[@]}"
if [ "$device" = cuda ]; then
    step machine 60 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    step tests-compiled 540 env TRITON_INTERPRET=0 CUDA_VISIBLE_DEVICES=0 "${tests[@]}" tests/mining/kernels/test_gpu.py
    step tests-on-device 300 env CUDA_VISIBLE_DEVICES=0 "${tests[@]}" tests/data/test_device_transforms.py \
        tests/evaluation/test_all_pairs.py tests/evaluation/test_devices.py
fi
for dim in $sizes; do
    for many in $images; do
        for miner in semihard hard all; do
            step "mining-$miner-$dim-$many" 420 "${bench[@]}" --miners $miner --dim "$dim" --images "$many" --measure time
        done
    done
done
step training 540 "$python" tools/check_training.py "$out/training" --device "$device"
for where in cpu device; do
    step "loader-varied-on-$where" 300 "$python" tools/bench_steps.py "$out/training/faces" --device "$device" \
        --augment-on "$where" "${loader[@]}"
done
step losses 540 "$python" tools/bench_losses.py --device "$device" "${losses[@]}"
step all-pairs 300 "$python" tools/bench_eval.py --only all --images $pairs --device "$device"
step neighbours 300 "$python" tools/bench_eval.py --only nearest --gallery $gallery --device "$device"
step templates 300 "$python" tools/bench_eval.py --only templates --templates $templates --device "$device"
for kind in copied sampled; do
    step "head-$kind" 300 "$python" tools/bench_head.py --device "$device" --heads $kind "${head[@]}"
done
step mining-memory 540 "${bench[@]}" --dim 128 --images 4 --measure memory --contenders facemetric pml
if [ "$device" = cuda ]; then
    for precision in tf32 bfloat16; do
        step "picking-$precision" 300 "${bench[@]}" --picking "$precision" --contenders facemetric \
            --miners semihard hard --dim 128 --images 4 --measure time
    done
fi
step picking-changes 300 "$python" tools/compare_picking.py --device "$device" "${changes[@]}"
step compiled-for 540 "$python" tools/compile_kernels.py --capability 80 90
step tests-interpreted 540 "${tests[@]}" tests/mining/kernels
[ -n "$list" ] && exit 0
for each in ${only//,/ }; do
    [[ "$known" == *" $each"* ]] || { echo "check_gpu.sh: no step begins with $each; see --list" >&2; exit 2; }
done
table
sed '/^$/q' "$out/table.md"
[ $left -gt 0 ] && echo "$left steps are left: the same command goes on"
exit $((failed + left > 0))
