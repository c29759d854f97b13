#!/usr/bin/env bash
# Builds `steer-worker` with the feature `cuda` on x86_64 Linux that has neither
# a GPU nor an NVIDIA driver nor an installed CUDA toolkit.
#
#     deploy/cuda/build-without-gpu.sh [WORK_FOLDER]
#
# Needs Rust, g++, Python 3 with venv, network and 3 GB. Without WORK_FOLDER a
# temporary one is made; name one to keep the toolkit and the compiled
# dependencies between builds. CUDA_COMPUTE_CAP picks the GPU, default 90 (H100).
set -euo pipefail

[ $# -le 1 ] || { echo "usage: $0 [WORK_FOLDER]" >&2; exit 2; }
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ $# -eq 1 ]; then mkdir -p "$1"; work=$1; else work=$(mktemp -d); fi
work=$(cd "$work" && pwd)
venv=$work/cuda-venv
home=$work/cuda-home
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/target-cuda}

# NVIDIA publishes the toolkit as wheels, so no root and no installer. 13.0 is
# pinned because cudarc asks nvcc for its version and binds that version's API.
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet \
    "cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl,nvvm,crt]==13.0.2"
toolkit=$("$venv/bin/python" -c \
    'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13

# The wheels' layout is not the one that build scripts look for, and their
# libraries have only versioned names, which `-lcublas` does not find.
mkdir -p "$home/lib64/stubs"
for folder in bin include nvvm; do
    ln -sfn "$toolkit/$folder" "$home/$folder"
done
for name in cublas cublasLt cudart curand nvrtc; do
    found=("$toolkit/lib/lib$name.so."*)
    [ ${#found[@]} -eq 1 ] && [ -e "${found[0]}" ] ||
        { echo "$toolkit/lib: expected one lib$name.so.*" >&2; exit 1; }
    ln -sfn "${found[0]}" "$home/lib64/lib$name.so"
done

# libcuda belongs to the driver and is in no wheel, but candle links against it.
# A stub of every `cu*` name that cudarc declares stands in for it; its soname is
# the driver's, so the binary finds the real one where there is one. Each
# function returns 34, CUDA_ERROR_STUB_LIBRARY.
cudarc=$(cargo metadata --locked --format-version 1 --features cuda \
    --manifest-path "$repo/services/worker/Cargo.toml" |
    "$venv/bin/python" -c 'import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "cudarc":
        print(os.path.dirname(package["manifest_path"]))')
stubs=$home/lib64/stubs
grep -oE 'fn cu[A-Za-z0-9_]+\(' "$cudarc/src/driver/sys/mod.rs" | sort -u |
    sed -E 's/fn (.*)\(/int \1(void) { return 34; }/' >"$stubs/cuda.c"
gcc -shared -fPIC -fno-builtin -Wl,-soname,libcuda.so.1 \
    -o "$stubs/libcuda.so.1" "$stubs/cuda.c"
ln -sfn libcuda.so.1 "$stubs/libcuda.so"

# The compute capability is given because the build scripts would otherwise ask
# nvidia-smi, which comes with the driver. 90 becomes sm_90a, which only GPUs of
# that very capability run: build for the GPU you have.
export CUDA_HOME=$home CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
PATH=$home/bin:$PATH cargo build --release --locked \
    --manifest-path "$repo/Cargo.toml" -p steering-worker --features cuda

# A start, as far as it goes without a GPU: every library is found and the
# command line is read. Never put the stub on the path of a machine with a GPU.
binary=$CARGO_TARGET_DIR/release/steer-worker
LD_LIBRARY_PATH=$toolkit/lib:$stubs "$binary" --help >/dev/null
echo "built $binary"
echo "it needs these at run time, from $toolkit/lib and the driver:"
readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(lib\(cu\|nv\).*\)\]/  \1/p'
