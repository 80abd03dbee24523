# Works with any make, macOS's GNU make 3.81 included. On Windows see README.md.
#   make test ARGS="-k costs"       more options for pytest or JupyterLab
#   make test ARGS="-n 0 -x"        one process instead of two, up to the first failure
#   make lab PYTHON=python3.13      another Python than the first one found

PYTHON ?=
ARGS ?=
STAMP = .venv/.installed
# A waiting thread of OpenBLAS sleeps at once, instead of taking a core from what comes next; that is
# settled when NumPy is loaded.
IN_VENV = PATH="$$PWD/.venv/bin:$$PATH" OPENBLAS_THREAD_TIMEOUT="$${OPENBLAS_THREAD_TIMEOUT:-4}"

# Sets $$python to the first Python 3.11-3.14 that can make a virtual environment.
FIND_PYTHON = python=; found=; \
	for p in $${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do \
	    "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null || continue; \
	    found=$$p; \
	    "$$p" -c 'import ensurepip, venv' 2>/dev/null && { python=$$p; break; }; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python 3.11 to 3.14 found$${PYTHON:+ (PYTHON=$$PYTHON)}: install one, or name it: make lab PYTHON=/where/it/is/python3" >&2; exit 1; \
	elif [ -z "$$python" ]; then \
	    echo "$$found cannot make a virtual environment (no ensurepip). Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; \
	fi

.PHONY: help lab edit test setup execute release record benchmark clean-notebooks lint lock

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F '|' '{ printf "%-22s%s\n", $$1, $$2 }'

# .jupyter/ turns off JupyterLab's question about news and its look for updates.
# Without a display there is no browser to open (a text browser would take the terminal over).
lab: $(STAMP) ## open your own copy of the course in JupyterLab
	@.venv/bin/python -m fastdl_lib.course.copies my_course
	@$(OPEN) --LabApp.default_url=/lab/tree/my_course/00_start_here.ipynb $(ARGS)

edit: $(STAMP) ## open the instructor's copy, solutions in
	@$(OPEN) --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(ARGS)

OPEN = set --; \
	if [ "$$(id -u)" = 0 ]; then set -- "$$@" --allow-root; fi; \
	if [ "$$(uname)$$DISPLAY$$WAYLAND_DISPLAY$$BROWSER" = Linux ]; then set -- "$$@" --no-browser; fi; \
	echo "Starting JupyterLab. Stop it here with Control-C."; \
	$(IN_VENV) JUPYTER_CONFIG_PATH="$$PWD/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
	    .venv/bin/python -m jupyterlab "$$@" --log-level=WARN

test: $(STAMP) ## run every test, as CI does
	@$(IN_VENV) .venv/bin/python -m pytest -n 2 $(ARGS)

setup: $(STAMP) ## only make .venv and install the locked packages

execute: $(STAMP) ## run the notebooks, store their outputs, clean them
	@$(IN_VENV) .venv/bin/python -m fastdl_lib.course.notebooks execute $(ARGS)

release: $(STAMP) ## make the students' copies: no solutions, no hidden tests
	@$(IN_VENV) .venv/bin/python -m fastdl_lib.course.release

record: $(STAMP) ## measure this machine in at most 8 minutes, for data/recordings/
	@$(IN_VENV) .venv/bin/python -m fastdl_lib.course.record $(ARGS)

benchmark: $(STAMP) ## time the package beside its peers (see benchmarks/README.md)
	@$(IN_VENV) .venv/bin/python benchmarks/speed.py $(ARGS)

clean-notebooks: $(STAMP) ## drop what should not be committed from the notebooks
	@$(IN_VENV) .venv/bin/python -m fastdl_lib.course.notebooks clean $(ARGS)

lint: $(STAMP) ## check code and notebooks with ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Kept pins stay; ARGS=--upgrade takes the newest. In an environment of its own, because .venv
# cannot be installed while requirements.txt and pyproject.toml contradict each other.
lock: ## write requirements.txt anew from pyproject.toml
	@set -e; PYTHON='$(PYTHON)'; $(FIND_PYTHON); \
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; trap 'exit 1' HUP INT TERM; \
	"$$python" -m venv "$$work/venv"; \
	"$$work/venv/bin/python" -m pip install --quiet uv; \
	grep -v '^-e \.$$' requirements.txt > "$$work/requirements.txt"; \
	"$$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --extra test \
	    --no-emit-index-url --custom-compile-command "make lock" $(ARGS) \
	    pyproject.toml -o "$$work/requirements.txt"; \
	echo '-e .' >> "$$work/requirements.txt"; \
	cat "$$work/requirements.txt" > requirements.txt

# .venv/.unfinished marks a set-up that was interrupted: the next one starts from nothing.
$(STAMP): requirements.txt pyproject.toml
	@set -e; PYTHON='$(PYTHON)'; \
	if [ -d .venv ] && { [ -e .venv/.unfinished ] || ! .venv/bin/python -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }; then \
	    echo "The .venv here is unfinished or broken: making it anew."; rm -rf .venv; \
	fi; \
	if [ ! -d .venv ]; then \
	    $(FIND_PYTHON); \
	    echo "Setting up .venv with $$("$$python" --version) (once; about a minute)."; \
	    mkdir .venv; touch .venv/.unfinished; \
	    "$$python" -m venv .venv || { rm -rf .venv; exit 1; }; \
	fi; \
	touch .venv/.unfinished; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; \
	rm .venv/.unfinished; touch $(STAMP)
