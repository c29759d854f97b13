#!/bin/sh
# Makes everything in demo/ from nothing. PYTHON names the interpreter; 1 thread per process, 2 processes.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3}
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
$PYTHON tokenizer.py
OMP_NUM_THREADS=1 $PYTHON model.py --steps "${STEPS:-2000}"
export OMP_NUM_THREADS=2
$PYTHON sae.py
$PYTHON labels.py
$PYTHON cavs.py
$PYTHON evaluate.py --confirm
$PYTHON reference.py
