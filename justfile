# Commands for everyday work. Logic longer than a line lives in `cargo xtask` or `scripts`.

# what there is
default:
    @just --list

# clippy, all targets
check:
    cargo clippy --workspace --all-targets

fmt:
    cargo fmt --all

# tests whose name contains FILTER; all without one
test filter="":
    cargo nextest run --workspace {{filter}}

# end to end: the real binary as child processes
it filter="":
    cargo nextest run -p clearway-cli --test it {{filter}}

# what a reviewer would say first
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo xtask arrows
    cargo xtask tidy

# everything that CI runs
verify:
    ./scripts/test

# SECONDS for each fuzz target
fuzz seconds="60":
    fuzz/run {{seconds}}

# crash histories of the reference runs, other seeds than the tests'
simulate seeds="1000..2000":
    CLEARWAY_SEEDS={{seeds}} cargo nextest run -p clearway-engine seeded_histories

# the crash suite
kill:
    cargo nextest run -p clearway-cli --test it crash:: durable::

# deliberate breakages, all or by name: each must be caught by its test
mutants *names:
    cargo xtask mutants {{names}}

# measurements against the release binary: all, or one by name
bench name="all" *args:
    cargo build --release -p clearway-cli
    cargo run --release -p clearway-bench -- {{name}} {{args}}

bench-streams *args: (bench "streams" args)

bench-overhead *args: (bench "overhead" args)

bench-limits *args: (bench "limits" args)

bench-providers *args: (bench "providers" args)

# Outages, hidden limits and crowds, for six minutes.
bench-drills *args: (bench "drills" args)

bench-layer *args: (bench "layer" args)

# random schedules of what providers may do, many more than the tests play
schedules seeds="100000":
    CLEARWAY_SEEDS={{seeds}} cargo nextest run --release -p clearway-upstream random_schedules

bench-turns *args: (bench "turns" args)

bench-cancel *args: (bench "cancel" args)

bench-kill *args: (bench "kill" args)

bench-kill-workflows *args: (bench "kill-workflows" args)

bench-drain *args: (bench "drain" args)

bench-rejoin *args: (bench "rejoin" args)

bench-langgraph *args: (bench "langgraph" args)
# Whether everything else stays fast while every campaign slot is busy.
bench-campaigns *args: (bench "campaigns" args)

# retrieval: a folder in BEIR layout beside SQLite's FTS5, or --scale
bench-kb *args:
    cargo run --release -p clearway-bench -- kb {{args}}

bench-storage *args: (bench "storage" "--svg" "docs/storage.svg" args)

bench-steps *args: (bench "steps" args)

bench-store *args: (bench "store" args)

bench-claims *args: (bench "claims" args)

bench-history *args: (bench "history" args)

bench-fairness *args: (bench "fairness" args)

# a development server with the simulated provider
dev *args:
    cargo run -p clearway-cli -- dev {{args}}
