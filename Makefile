# `make demo` and `make test` do everything on a fresh machine with Python 3.11+, make and git.
PYTHON ?= python3
PY := .venv/bin/python
TORCHRUN := .venv/bin/torchrun --nproc_per_node 2
OUT := outputs/demo
SARCLIP := outputs/demo_sarclip
export TOKENIZERS_PARALLELISM := false
# DeepSpeed keeps its CPU kernels in the user's cache, where another checkout would rebuild them while they are in use.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions

.PHONY: setup demo demo-sarclip test test-all test-browser drills support plans lint clean

setup: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed, found ' + sys.version"
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# The whole road on a tiny model: simulated scenes, optical teaching, LoRA on radar, answers, merge, report.
demo: setup
	rm -rf $(OUT)
	$(PY) data_prep/make_sample.py --out $(OUT)/sample --images 2000 --test_fraction 0.1 --seed 0
	$(PY) data_prep/convert_sarlang.py --root $(OUT)/sample --out $(OUT)/data --class_prefix never
	$(PY) data_prep/convert_sarlang.py --root $(OUT)/sample --image_root $(OUT)/sample/RGBimages --out $(OUT)/data_optical --class_prefix never
	$(TORCHRUN) recipes/qwen_full.py
	$(TORCHRUN) recipes/qwen_lora.py
	$(PY) recipes/merge_adapter.py --base $(OUT)/base --adapter $(OUT)/lora --out $(OUT)/merged
	$(PY) eval/generate.py --model $(OUT)/base --data $(OUT)/data --out $(OUT) --name predictions_before
	$(PY) eval/generate.py --model $(OUT)/base --adapter $(OUT)/lora --data $(OUT)/data --out $(OUT) --name predictions_after
	$(PY) eval/generate.py --model $(OUT)/base --adapter $(OUT)/lora --data $(OUT)/data --out $(OUT) --name predictions_blind --exchange_images --subsets vqa1 vqa2
	$(PY) eval/generate.py --model $(OUT)/base --adapter $(OUT)/lora --data $(OUT)/data --out $(OUT) --name predictions_text --without_images --subsets vqa1 vqa2
	$(PY) eval/score_vqa.py --predictions $(OUT)/predictions_after.jsonl --data $(OUT)/data --out $(OUT)/scores_vqa.json
	$(PY) eval/score_caption.py --predictions $(OUT)/predictions_after.jsonl --data $(OUT)/data --out $(OUT)/scores_caption.json
	$(PY) eval/report.py --data $(OUT)/data --out $(OUT) \
		--runs before=$(OUT)/predictions_before.jsonl after=$(OUT)/predictions_after.jsonl \
			blind=$(OUT)/predictions_blind.jsonl text_only=$(OUT)/predictions_text.jsonl \
		--histories lora=$(OUT)/lora --scores after=$(OUT)/scores_vqa.json --captions after=$(OUT)/scores_caption.json --merged $(OUT)/merged

# The contrastive road on a tiny model: optical pictures, then radar, retrieval before and after, an ensemble of both.
demo-sarclip: setup
	rm -rf $(SARCLIP)
	$(PY) data_prep/make_sample.py --out $(SARCLIP)/sample --images 1000 --test_fraction 0.2 --seed 0
	$(PY) data_prep/convert_sarlang.py --root $(SARCLIP)/sample --out $(SARCLIP)/data --val_fraction 0.1 --class_prefix never
	$(PY) data_prep/convert_sarlang.py --root $(SARCLIP)/sample --image_root $(SARCLIP)/sample/RGBimages --out $(SARCLIP)/data_optical --val_fraction 0.1 --class_prefix never
	$(TORCHRUN) recipes/sarclip.py --config recipes/configs/sarclip_demo.yaml
	$(PY) eval/retrieval.py --model $(SARCLIP)/sarclip/optical --data $(SARCLIP)/data --out $(SARCLIP)/retrieval_optical.json
	$(PY) eval/retrieval.py --model $(SARCLIP)/sarclip/sar --data $(SARCLIP)/data --out $(SARCLIP)/retrieval_sar.json --gallery $(SARCLIP)/gallery.png
	$(PY) recipes/ensemble.py --between $(SARCLIP)/sarclip/optical $(SARCLIP)/sarclip/sar --alphas 0 0.2 0.4 0.6 0.8 1 \
		--target sar=retrieval:$(SARCLIP)/data@val --out_of_domain optical=retrieval:$(SARCLIP)/data_optical@val \
		--test sar_test=retrieval:$(SARCLIP)/data@test optical_test=retrieval:$(SARCLIP)/data_optical@test \
		--out $(SARCLIP)/ensemble
	$(PY) eval/report.py --figures optical=$(SARCLIP)/retrieval_optical.json sar=$(SARCLIP)/retrieval_sar.json --out $(SARCLIP)

# One process per core, each on one core: most tests start processes of their own.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup lint
	$(PYTEST) -m "not slow"

test-all: setup lint
	$(PYTEST)

# The pages of preview and report in Chromium: the system's, or the one that `.venv/bin/playwright install chromium` brings.
test-browser: setup
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	$(PY) -m pytest tests/browser

# Trainings killed, stopped and damaged at random moments, a hundred times: about half an hour.
drills: setup
	OMP_NUM_THREADS=1 $(PY) tests/drills/many.py --count 100

# The table of families and ways to tune in docs/support.md, from the results of their tests.
support: setup
	$(PYTEST) tests/test_matrix.py --junitxml outputs/matrix.xml
	$(PY) docs/write_support.py "CPU tiny=outputs/matrix.xml"

# The planner's estimates in the headers of recipes/configs.
plans: setup
	$(PY) docs/write_plans.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf outputs .pytest_cache .ruff_cache build *.egg-info
