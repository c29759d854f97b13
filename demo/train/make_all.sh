#!/bin/sh
# Makes everything in demo/ from nothing. From the environment: PYTHON, the interpreter; STEPS and WORKERS
# of the model's training (one thread each); THREADS of each later step. QUICK=1 runs every step on little:
# it shows that the recipe runs, and what it makes is worthless. Try it on a copy of demo/.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3} few='' sae=''
if [ -n "${QUICK:-}" ]; then
    STEPS=${STEPS:-30} few='--prompts 4' sae='--steps 100 --lines 500'
fi
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
$PYTHON tokenizer.py
OMP_NUM_THREADS=1 $PYTHON model.py --steps "${STEPS:-5000}" --workers "${WORKERS:-2}"
export OMP_NUM_THREADS="${THREADS:-2}"
# The options are lists of words.
# shellcheck disable=SC2086
{
    $PYTHON sae.py $sae
    $PYTHON labels.py $few ${QUICK:+--screen-prompts 2 --candidates 1}
    $PYTHON cavs.py $few
    $PYTHON evaluate.py --confirm $few
}
$PYTHON reference.py
