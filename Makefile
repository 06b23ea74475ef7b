.PHONY: check test demo nano quality reproduce

check:  ## style, types, layers
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	pytest -n 0 tests/test_repository.py

test:
	pytest

demo:  ## the README's clip and picture
	python -m rvedit.playground.demo assets/park.mp4
	rvedit edit assets/park.mp4 "replace the dog with a corgi" --guidance 2 --overwrite -o /tmp/park_edited.mp4
	rvedit edit assets/park.mp4 "replace the dog with a corgi" --guidance 2 --overwrite -o /tmp/park_plain.mp4 --detail off
	python benchmarks/contact_sheet.py assets/park_compare.png assets/park.mp4 /tmp/park_plain.mp4 /tmp/park_edited.mp4

nano:  ## train the embedded model again, from nothing
	rvedit train recipes/nano_vae_stills.yaml
	rvedit train recipes/nano_vae.yaml
	rvedit train recipes/nano_vae_decoder.yaml
	rvedit train recipes/nano_first_stage.yaml
	rvedit train recipes/nano_swaps.yaml
	rvedit train recipes/nano.yaml
	python -m rvedit.playground.bundle runs/nano

reproduce:  ## the paper's ablations at nano size, from the first stage of `make nano`
	python benchmarks/reproduce.py

quality:  ## 200 held-out clips
	python benchmarks/nano_quality.py --out benchmarks/results/nano_quality.json
