# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo

.PHONY: demo docs picture validators test test-long test-fast lint audit lock bench bench-quality bench-honesty reliability clean

# The environment is made when it is missing, and renewed when what it is made from changes.
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,docs]'
	touch $@

demo: .venv/.ready
	rm -rf $(DEMO)
	$(BIN)/tdenoise-pipeline simulate -o $(DEMO)/raw --size 160 --n-frames 96 --dose 2
	$(BIN)/tdenoise-pipeline run $(DEMO)/raw/movie.tif -o $(DEMO)/result --truth $(DEMO)/raw/truth.npz --time-limit 2m
	$(BIN)/tdenoise-pipeline verify $(DEMO)/result/denoised.zarr --deep
	$(BIN)/python -c "import xarray; print(xarray.open_zarr('$(DEMO)/result/denoised.zarr')['denoised'])"
	$(BIN)/tdenoise-pipeline export $(DEMO)/result -o $(DEMO)/result/movie.mp4
	@echo "Look at $(DEMO)/result/report.html in a browser, and play $(DEMO)/result/movie.mp4."

# Warnings are errors: a link that leads nowhere is one.
docs: .venv/.ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -b html docs docs/_build
	@echo docs/_build/index.html

# The moving picture of README and documents, from what `make demo` left.
picture: .venv/.ready
	$(BIN)/tdenoise-pipeline export $(DEMO)/result -o docs/demo.webp --force --panels raw,mean9,denoised \
		--frames 36:60 --speed 12fps

# Official validators of the files that we write, in an environment of their own; tests that ask them are skipped without.
# One to three minutes, most of them downloads. torch is that of .venv: a second one would take a gigabyte and more.
validators: .venv-validators/.ready
.venv-validators/.ready: tests/validators/requirements.txt .venv/.ready
	rm -rf .venv-validators
	$(BIN)/python -m venv .venv-validators
	$(BIN)/python -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])" \
		>"$$(.venv-validators/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/of_tdenoise.pth"
	.venv-validators/bin/python -m pip install --quiet --disable-pip-version-check -r tests/validators/requirements.txt
	touch $@

# Tests mostly wait for processes that they started: two files run at a time. Those on a real Slurm run beside them, on
# two of them, and are shown when those are over. What fails is run once more, alone: the machine may have been too busy
# for it. Both results are shown, and the second one counts.
AGAIN = --last-failed --last-failed-no-failures none
test: .venv/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m slurm -o cache_dir=.pytest_cache_slurm >.slurm-tests.log 2>&1 & \
	slurm=$$!; trap 'kill $$slurm; exit 130' INT TERM; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slurm and not long"; others=$$?; \
	wait $$slurm; slurm=$$?; cat .slurm-tests.log; rm .slurm-tests.log; \
	if [ $$others = 1 ]; then $(BIN)/python -m pytest -m "not slurm and not long" $(AGAIN); others=$$?; fi; \
	if [ $$slurm = 1 ]; then $(BIN)/python -m pytest -m slurm -o cache_dir=.pytest_cache_slurm $(AGAIN); slurm=$$?; fi; \
	test $$others = 0 && test $$slurm = 0

# Before a release, and whenever a benchmark changes: what `make test` leaves out.
test-long: .venv/.ready
	$(BIN)/python -m pytest -m long

# Without what takes long or kills processes.
test-fast: .venv/.ready
	$(BIN)/python -m pytest -m "not slow and not long and not chaos and not slurm and not browser"

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Licences, versions and hashes of what is installed; what needs a service that is not reachable is skipped.
audit: .venv/.ready
	$(BIN)/python .ci/audit.py requirements.lock

# Needs pip-tools in the environment; torch is that of the index, or of the extra index that is set up for pip.
lock: .venv/.ready
	$(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-header --no-annotate \
		--no-emit-find-links --strip-extras --all-extras --allow-unsafe -c constraints.txt -o requirements.lock pyproject.toml
	sed -i -e '/^tdenoise @/d' -e '/^# WARNING/d' -e '/^# Consider/d' requirements.lock

bench: .venv/.ready
	for script in ingest apply protocol throughput block_cost memory; do $(BIN)/python benchmarks/$$script.py --quick || exit 1; done

# Hours: every model on every movie and dose. MOVIES are files of `tdenoise-pipeline simulate`.
MOVIES ?= ../shared/data/benchmark/ptceo2_dev.npz ../shared/data/benchmark/ptceo2_long.npz
LIMIT ?= 10m
bench-quality: .venv/.ready
	$(BIN)/python benchmarks/quality.py $(MOVIES) --time-limit $(LIMIT) --save table

# An hour and more: scenes that no lattice prior covers, if they lie beside the checkout.
bench-honesty: .venv/.ready
	$(BIN)/python benchmarks/honesty.py --save table

# Every way to break a run that one machine can host; each case ends after MINUTES. Writes docs/notebook/reliability_counts.md.
MINUTES ?= 12
reliability: .venv/.ready
	$(BIN)/python benchmarks/reliability.py --save --minutes $(MINUTES)

clean:
	rm -rf .venv .venv-validators $(DEMO) build dist *.egg-info docs/_build
