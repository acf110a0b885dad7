#!/usr/bin/env bash
# Holds docs/post-office.md against the tests: every rule, and every row of its table of failures, names at least one
# that exists and runs; no number stands for two rules; a rule that the text cites is there. First it shows on broken
# copies of a small office that it would notice. Exit status 1: something is missing, and where.
#
# A test is named as `file: function` (a #[test], a #[tokio::test], a law of a port that its list has, a named case of a
# test without libtest), as a script that scripts/test.sh runs, or as `simulation: every schedule`, run there as well.
set -euo pipefail
cd "$(dirname "$0")/.."

check() { # in this directory
  awk '
    function complain(what) { print FILENAME ":" FNR ": " what; faults++ }

    # Notes the tests of a Rust file: runs[file, name] is "" where it runs, else why not.
    function read_tests(file,   line, name, due, ignored, comment, quoted, laws, law, i) {
      if (file in read) return read[file]
      read[file] = 0
      while ((getline line < file) > 0) {
        read[file] = 1
        sub(/^[ \t]+/, "", line)
        if (line ~ /^\/\*/) comment = 1
        if (comment) { if (line ~ /\*\//) comment = 0; continue }
        if (line ~ /^\/\//) continue
        if (line ~ /^#\[(tokio::)?test[](]/) due = 1
        else if (line ~ /^#\[ignore/) ignored = 1
        else if (line ~ /^(pub )?(async )?fn /) {
          name = line
          sub(/^(pub )?(async )?fn /, "", name); sub(/[^a-z0-9_].*/, "", name)
          if (due) runs[file, name] = ignored ? "it is ignored" : ""
          else if (line ~ /^pub .*(<E: Engine>\(\)|\(engine: impl Engine\))/) laws = laws " " name
          due = ignored = 0
        }
        # Tests that start themselves anew have no libtest: cases by name.
        else if (line ~ /^\("[a-z0-9_]+", \|/ || line ~ /^let name = "[a-z0-9_]+";$/) {
          split(line, quoted, "\"")
          runs[file, quoted[2]] = ""
        }
      }
      close(file)
      # Their list may be in the same file.
      for (i = split(laws, law, " "); i > 0; i--) {
        runs[file, law[i]] = is_listed(file, law[i]) ? "" : "no list of laws has it"
      }
      return read[file]
    }

    # Whether the laws! of its directory has a law.
    function is_listed(file, law,   dir, stem, i, list, line, inside, entry) {
      dir = file; sub(/[^\/]*$/, "", dir)
      stem = substr(file, length(dir) + 1); sub(/\.rs$/, "", stem)
      for (i = 1; i <= 2; i++) {
        list = dir (i == 1 ? "main.rs" : "mod.rs")
        inside = 0
        entry = (list == file ? "" : stem "::") law ","
        while ((getline line < list) > 0) {
          sub(/^[ \t]+/, "", line)
          # A list on one line, the laws of it after the engine.
          if (line ~ /^laws! \{.*\}$/ && index(line, " " law ",")) { close(list); return 1 }
          if (line ~ /^(laws|\$take)! \{/) inside = 1
          else if (line ~ /^\}/) inside = 0
          else if (inside && line == entry) { close(list); return 1 }
        }
        close(list)
      }
      return 0
    }

    function has_line(file, pattern,   line, found) {
      while (!found && (getline line < file) > 0) found = line ~ pattern
      close(file)
      return found
    }

    # Why what stands between two backticks is no test, or "".
    function fault_of(text,   file, name) {
      if (text == "simulation: every schedule") {
        if (!has_line("simulation/src/inside.rs", "fn check")) return "there is no simulation"
        return has_line("scripts/test.sh", "^script \".*/simulate\"? ") ? "" : "scripts/test.sh does not run it"
      }
      if (text ~ /^scripts\/[a-z-]+\.sh$/) {
        return has_line("scripts/test.sh", "^script \".*[ ]" text "$") ? "" : "scripts/test.sh does not run it"
      }
      if (text !~ /^[a-z][a-z_\/]*\.rs: [a-z0-9_]+$/) return "no form that a test is named in"
      file = name = text; sub(/: .*/, "", file); sub(/.*: /, "", name)
      if (!read_tests(file)) return "there is no such file"
      if (!((file, name) in runs)) return "the file has no such test"
      return runs[file, name]
    }

    function end_rule() {
      if (rule != "" && !proofs) { print FILENAME ":" rule_line ": " rule " names no test"; faults++ }
      rule = ""
    }

    /^- \*\*R[0-9]+\*\* / {
      end_rule()
      rule = $2; gsub(/\*/, "", rule)
      rule_line = FNR; proofs = 0
      if (rule in rules) complain(rule " stands at line " rules[rule] " already")
      else rules[rule] = FNR
      count++
    }
    /^[^ -]/ { end_rule() }
    /^```/ { drawing = !drawing; next }
    drawing { next }
    {
      in_line = 0
      parts = split($0, part, "`")
      if (parts && parts % 2 == 0) complain("a backtick without its other half")
      for (i = 2; i <= parts; i += 2) {
        if (part[i] !~ /\.(rs|sh)|^simulation/) continue
        proofs++; in_line++; named++
        fault = fault_of(part[i])
        if (fault != "") complain("`" part[i] "`: " fault)
      }
      plain = ""
      for (i = 1; i <= parts; i += 2) plain = plain " " part[i]
      while (match(plain, /[^A-Za-z0-9*]R[0-9]+/)) {
        cited[substr(plain, RSTART + 1, RLENGTH - 1)] = FNR
        plain = substr(plain, RSTART + RLENGTH)
      }
    }
    # A table whose last column has tests.
    /^\|/ {
      if (!table) { table = 1; proved = tolower($0) ~ /tests? *\|$/ }
      else if (proved && !in_line && $0 !~ /^\|[-| ]*$/) complain("this row names no test")
    }
    !/^\|/ { table = 0 }
    END {
      end_rule()
      for (name in cited) if (!(name in rules)) { FNR = cited[name]; complain("there is no rule " name) }
      if (!count) { print FILENAME ": no rules"; faults++ }
      if (faults) exit 1
      print FILENAME ": " count " rules, tests named " named " times, all there"
    }' docs/post-office.md
}

# A small office that is in order.
office() {
  mkdir -p docs a/tests b/tests/laws c/tests scripts simulation/src
  printf 'pub async fn check() {}\n' >simulation/src/inside.rs
  printf '%s\n' 'script "fire" env KILLS=2 scripts/crash-test.sh' 'script "seeds" "$BIN/simulate" --seeds 9' \
    >scripts/test.sh
  printf '%s\n' '#[test]' 'fn plain() {}' '#[tokio::test(start_paused = true)]' '#[expect(x)]' 'async fn waits() {}' \
    'proptest! {' '    #[test]' '    fn random(n in 0..9) {}' '}' 'fn helper() {}' >a/tests/one.rs
  printf '%s\n' 'macro_rules! laws {' '    laws! { run $engine:' '        rows::kept,' '    }' '}' >b/tests/laws/main.rs
  printf '%s\n' 'pub async fn kept(engine: impl Engine) {}' >b/tests/laws/rows.rs
  printf '%s\n' 'laws! {' 'stands,' '}' 'pub async fn stands<E: Engine>() {' >b/tests/laws/mod.rs
  printf '%s\n' 'fn main() {}' '    ("cut", |runtime| {' >c/tests/disk.rs
  cat >docs/post-office.md <<'END'
- **R1** One.
  - `a/tests/one.rs: plain`, `a/tests/one.rs: waits`
- **R2** Two, for R1.
  - `a/tests/one.rs: random`

Prose.

- **R3** Three.
  - `b/tests/laws/rows.rs: kept`, `b/tests/laws/mod.rs: stands`
- **R4** Four.
  - `c/tests/disk.rs: cut`, `simulation: every schedule`

| what | rule and test |
|---|---|
| fails | R3 `scripts/crash-test.sh` |
END
}

# Breaks one thing in a fresh office: that, and nothing else, must be told in these words.
noticed() { # the words, the command that breaks it…
  local words=$1 said
  shift
  rm -rf "$work/office"
  mkdir "$work/office"
  (cd "$work/office" && office && "$@" && if check >../said; then echo "nothing is wrong" >../said; fi)
  said=$(<"$work/said")
  if [[ $said != *"$words"* || $said == *$'\n'* ]]; then
    printf "post-office.sh: after '%s' it must say '%s' and no more; it said:\n%s\n" "$*" "$words" "$said" >&2
    exit 1
  fi
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
doc=docs/post-office.md
noticed "nothing is wrong" true
noticed "$doc:1: R1 names no test" sed -i '2d' $doc
noticed "$doc:3: R1 stands at line 1 already" sed -i -e 's/R2\*\*/R1**/' $doc
noticed "there is no rule R7" sed -i 's/for R1/for R7/' $doc
noticed "$doc:15: this row names no test" sed -i 's/R3 `.*` |/R3 |/' $doc
noticed "a backtick without its other half" sed -i 's/waits`/waits/' $doc
noticed "no form that a test is named in" sed -i 's/: random/:random/' $doc
noticed "there is no such file" sed -i 's/one.rs: random/two.rs: random/' $doc
noticed "the file has no such test" sed -i 's/random/helper/' $doc
noticed "the file has no such test" sed -i 's/fn random/fn renamed/' a/tests/one.rs
noticed "the file has no such test" sed -i 's/    #\[test\]/    \/\/ #[test]/' a/tests/one.rs
noticed "the file has no such test" sed -i 's/    fn random/    \/\/ fn random/' a/tests/one.rs
noticed "it is ignored" sed -i 's/    #\[test\]/    #[test]\n    #[ignore]/' a/tests/one.rs
noticed "no list of laws has it" sed -i 's/        rows::kept/        \/\/ rows::kept/' b/tests/laws/main.rs
noticed "no list of laws has it" sed -i 's/^stands/sits/' b/tests/laws/mod.rs
noticed "the file has no such test" sed -i 's/"cut"/"cuts"/' c/tests/disk.rs
noticed "scripts/crash-test.sh\`: scripts/test.sh does not run it" sed -i 's/^script "f/# script "f/' scripts/test.sh
noticed "every schedule\`: scripts/test.sh does not run it" sed -i 's/^script "s/# script "s/' scripts/test.sh
noticed "there is no simulation" rm simulation/src/inside.rs
check
