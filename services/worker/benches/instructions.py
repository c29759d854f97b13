#!/usr/bin/env python3
"""Instructions that a step of the model costs, by format, beside what is committed.

    cargo build --release --workspace --example step_cost
    python services/worker/benches/instructions.py [--update]

Counted by valgrind, on one thread, so that the same binary gives the same number on a
busy machine too. Another compiler gives another number: up to 10 % more passes, which
still shows a loop that lost its vectors. `instructions.json` is in thousands.
"""
import argparse, json, os, pathlib, re, subprocess, sys

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE / "instructions.json"
FORMATS = ["f32", "q5_0", "q8_0", "q4k", "q6k"]
WORKS = ["p64", "1", "16"]
ALLOWED = 1.10


def run(binary, *arguments):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-fd=2"]
    # One processor, so one thread.
    processor = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", processor, *command, str(binary), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return int(found[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--binary", default=HERE.parents[2] / "target/release/examples/step_cost")
    parser.add_argument("--update", action="store_true", help="write what is counted")
    arguments = parser.parse_args()
    known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    counted, slower = {}, []
    print(f"{'thousands':10}" + "".join(f"{work:>10}{'':7}" for work in WORKS))
    for name in FORMATS:
        once = {w: run(arguments.binary, name, w, "1") for w in WORKS}
        counted[name] = {w: (run(arguments.binary, name, w, "3") - once[w]) // 2000 for w in WORKS}
        line = f"{name:10}"
        for work, count in counted[name].items():
            ratio = count / known[name][work] if name in known else 1.0
            line += f"{count:10}{ratio:6.2f} "
            if ratio > ALLOWED:
                slower.append(f"{name} {work}: {count} where {known[name][work]} were counted before")
        print(line, flush=True)
    if arguments.update:
        TABLE.write_text(json.dumps(counted, indent=1) + "\n")
    elif slower:
        sys.exit("more instructions than before:\n  " + "\n  ".join(slower))


if __name__ == "__main__":
    main()
