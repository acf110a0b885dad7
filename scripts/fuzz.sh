#!/usr/bin/env bash
# Feeds the fuzz targets (fuzz/) with made-up input. Everything is built once, with the toolchain of this repository: our
# own crates anew with instrumentation (fuzz/instrument.sh), what is third-party as it is.
# Usage: scripts/fuzz.sh run TARGET [DURATION]     searches for so long (90s, 10m, 2h), adds what it finds new to target/fuzz/TARGET
#        scripts/fuzz.sh test [SEED]               all targets, so many runs each
#        scripts/fuzz.sh merge [TARGET]…           keeps in fuzz/corpus the few inputs of both that lead everywhere
set -euo pipefail
cd "$(dirname "$0")/.."

# Runs of each target in `test`: together some 30 s on two cores.
declare -A runs=([frames]=10000 [bodies]=3000 [tokens]=100000 [records]=100000 [logs]=5000)
targets=(frames bodies tokens records logs)
found=target/fuzz
# A unit that takes longer than 20 s hangs; 2 GiB are far more than any target may take.
flags=(-timeout=20 -rss_limit_mb=2048 -print_final_stats=1)

build() {
  scripts/need.sh cargo cc c++
  local bins=() target
  for target in "${targets[@]}"; do bins+=(--bin "$target"); done
  # With a test in it the dependencies have the features that all tests have: they are built already.
  RUSTC_WORKSPACE_WRAPPER=$PWD/fuzz/instrument.sh \
    cargo build --locked --workspace --features fuzz/targets "${bins[@]}" --test corpora
}

# libFuzzer writes to its first directory, and only reads the others.
fuzz() { # target, flags…
  local target=$1
  shift
  mkdir -p "$found/$target"
  target/debug/"$target" "${flags[@]}" -artifact_prefix="$found/$target-" "$@" "$found/$target" "fuzz/corpus/$target" || {
    broken=$(ls -t "$found/$target"-* 2>/dev/null | head -n 1)
    echo "again: target/debug/$target ${broken:-FILE}; once it is mended: mv ${broken:-FILE} fuzz/corpus/$target/found-WHAT" >&2
    return 1
  }
}

# Leaves in a corpus, of all that was looked at, the 128 files that lead to the most places together, and what once broke a law
# (`found-…`). Reads what libFuzzer noted of a merge: the files, and for each the edges that it has covered.
keep() { # corpus
  python3 -c '
import hashlib, pathlib, sys
corpus = pathlib.Path(sys.argv[1])
lines = sys.stdin.read().splitlines()
files = lines[2:2 + int(lines[0])]
edges = {files[int(n)]: set(rest) for kind, n, *rest in map(str.split, lines[2 + len(files):]) if kind == "COV"}
read = {file: pathlib.Path(file).read_bytes() for file in edges}
left, kept = set().union(*edges.values()), []
while left and len(kept) < 128:
    best = min(edges, key=lambda file: (-len(edges[file] & left), len(read[file]), file))
    kept.append(read[best])
    left -= edges.pop(best)
for file in corpus.iterdir():
    if not file.name.startswith("found-"):
        file.unlink()
for data in kept:
    (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
print(f"{corpus}: {len(list(corpus.iterdir()))} files, {sum(f.stat().st_size for f in corpus.iterdir())} bytes, {len(left)} edges left out")
' "$1"
}

case ${1:-} in
  run)
    [ -f "fuzz/fuzz_targets/${2:-}.rs" ] || { echo "no target ${2:-}; there are ${targets[*]}" >&2 && exit 2; }
    duration=${3:-60s}
    case $duration in
      *h) seconds=$((${duration%h} * 3600)) ;;
      *m) seconds=$((${duration%m} * 60)) ;;
      *) seconds=${duration%s} ;;
    esac
    build
    fuzz "$2" -max_total_time="$seconds"
    ;;
  test)
    seed=${2:-$((RANDOM * 32768 + RANDOM))}
    build
    echo "seed $seed; again: scripts/fuzz.sh test $seed"
    found=target/fuzz/test # a new one each time, or a seed would not say all
    rm -rf "$found"
    mkdir -p "$found"
    for target in "${targets[@]}"; do
      began=$SECONDS
      if ! fuzz "$target" -seed="$seed" -runs="${runs[$target]}" >"$found/$target.log" 2>&1; then
        tail -n 40 "$found/$target.log" >&2
        exit 1
      fi
      grep -aE '^Done |^stat::average_exec' "$found/$target.log" | tr '\n' ' '
      echo "$target, $((SECONDS - began)) s"
    done
    ;;
  merge)
    shift
    build
    [ $# = 0 ] && set -- "${targets[@]}"
    for target; do
      least=$(mktemp -d)
      mkdir -p "$found/$target"
      target/debug/"$target" -set_cover_merge=1 -merge_control_file="$least/seen" "$least" "fuzz/corpus/$target" "$found/$target" \
        2>&1 | grep -a MERGE-OUTER
      keep "fuzz/corpus/$target" <"$least/seen"
      rm -rf "$least"
    done
    ;;
  *)
    sed -n '2,/^set/s/^# //p' "$0" >&2
    exit 2
    ;;
esac
