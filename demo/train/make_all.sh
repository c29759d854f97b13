#!/bin/sh
# Makes everything in demo/ from nothing. From the environment: PYTHON, the interpreter; STEPS and WORKERS
# of the model's training (one thread each); THREADS of each later step (1 on a machine that is busy with
# other work: threads that wait for one another cost more than they bring). QUICK=1 runs every step on
# little, in minutes: it shows that the recipe runs, and what it makes is worthless. Try it on a copy.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3} few='' sae=''
if [ -n "${QUICK:-}" ]; then
    STEPS=${STEPS:-30} few='--prompts 4' sae='--steps 100 --lines 500'
fi
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
$PYTHON tokenizer.py
OMP_NUM_THREADS=1 $PYTHON model.py --steps "${STEPS:-2000}" --workers "${WORKERS:-2}"
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
