#!/usr/bin/env bash
# Cargo's RUSTC_WORKSPACE_WRAPPER: compiles our own crates so that libFuzzer sees where an input leads and what it is
# compared with, as cargo-fuzz does with `--sanitizer none`. Needs no nightly. What is third-party stays as it was built.
set -euo pipefail
case " $* " in
  *" --test "* | *" build_script_build "* | *" --print"* | *" -vV "*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
