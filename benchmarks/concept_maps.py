"""Where nano finds things that the instruction does not name, by variants of `analyze trace --concepts`.

    python benchmarks/concept_maps.py --out benchmarks/results/concept_maps.json

Held-out clips are edited, and the map of a thing is compared with its exact mask, from renderings with and
without it. Measured are the AUC (the probability that a patch inside has a higher share than one outside; 0.5
is chance), with 95% intervals over clips, and the mean shares inside and outside. The thing competes with two
things that are in neither clip ("absent"), or with its background and the sky ("scene"; nano's instructions
have neither word). "other AUC" is that of the first competitor's map on the same mask: what the thing's map
has beyond it is due to the word. Maps are means over the blocks and steps that `analyze trace` shows. The
same is measured for things that the instruction names, beside the map of their own word.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, replace

import numpy as np
import torch
from _common import arguments, print_table, write_json
from einops import einsum, reduce
from tqdm import tqdm

from rvedit.analysis.concepts import concept_shares, concept_tokens, concept_values
from rvedit.analysis.experiments import observe_edit
from rvedit.analysis.reading import attention_rows
from rvedit.analysis.reasoning import word_tokens
from rvedit.analysis.trace import default_blocks, default_steps
from rvedit.editing.config import EditConfig
from rvedit.editing.windows import FRAMES_PER_LATENT
from rvedit.evaluation.aggregate import estimate_of, resampled_means
from rvedit.pipelines.loading import load_pipeline
from rvedit.playground import grammar
from rvedit.playground.world import edit_mask, render, sample_triplet

NUM_FRAMES, SIZE = 9, 128
MEAN = "mean"
ATTENDED = "attention, no competition"
"""The attention that the concept would get if its token were among the context's."""


def held_out(count: int, seed: int, named: bool):
    """Yield held-out triplets, and the source's things that the instruction names, or does not name."""
    index = 0
    for _ in tqdm(range(count), desc="named" if named else "not named"):
        while True:
            triplet = sample_triplet(seed, index, "test")
            index += 1
            words = triplet.instruction.split()
            if things := [thing for thing in triplet.source.things if (thing.noun in words) == named]:
                yield triplet, things
                break


def thing_mask(scene, thing, grid: int):
    """Return the patches (f, y, x) that a thing covers at least half of."""
    without = replace(scene, things=tuple(other for other in scene.things if other != thing))
    clip, empty = (render(each, NUM_FRAMES, SIZE, SIZE) for each in (scene, without))
    cover = reduce(edit_mask(clip, empty).astype(float), "t (y p) (x q) -> t y x", "mean", p=grid, q=grid)
    later = reduce(cover[1:], "(f k) y x -> f y x", "mean", k=FRAMES_PER_LATENT)
    return np.concatenate([cover[:1], later]) >= 0.5


def record(pipeline, triplet, source, shown):
    """Edit a clip; return (query, key, position of the first text token, output) by block and step."""
    keys, found = {}, {}

    def on_attention(step, block, query, key, groups):
        keys[block] = query[0], key[0], sum(groups[:2])

    def on_output(step, block, output):
        if (block, step) in shown:
            found[block, step] = (*keys[block], output[0])

    settings = EditConfig(guidance_scale=1.0)
    observe_edit(pipeline, source, triplet.instruction, settings, on_attention, on_output=on_output)
    return found


def variant_maps(attention, tokens, query, key, output):
    """Return the maps (s, c) of the concepts by variant."""
    keys = [attention.norm_k(attention.to_k(each)).mean(dim=0) for each in tokens]
    concept_keys = torch.stack(keys).unflatten(-1, query.shape[1:])
    values = concept_values(attention, tokens)
    scale = math.sqrt(query.shape[-1])
    logits = einsum(query, concept_keys, "s h e, c h e -> s h c") / scale
    dots = einsum(output, values, "s h e, c h e -> s h c")
    context = torch.logsumexp(einsum(query, key, "s h e, n h e -> s h n") / scale, dim=-1, keepdim=True)
    return {
        "keys": logits.softmax(dim=-1).mean(dim=1),
        "outputs, dot product": (dots / scale).softmax(dim=-1).mean(dim=1),
        "outputs, dot product over heads": dots.sum(dim=1).softmax(dim=-1),
        "outputs, cosine": concept_shares(output, values),
        ATTENDED: torch.sigmoid(logits - context).mean(dim=1),
    }


def auc(shares, mask):
    """Return the probability that a share inside the mask is higher than one outside."""
    difference = shares[mask][:, None] - shares[~mask]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def measure(pipeline, triplet, thing, mask, found, rng):
    """Return by list of concepts, variant and place: AUC, other AUC, the mean share inside, and outside."""
    present = {each.noun for scene in (triplet.source, triplet.target) for each in scene.things}
    absent = rng.choice([noun for noun in grammar.NOUNS if noun not in present], 2, replace=False).tolist()
    rows = {}
    for name, others in (("absent", absent), ("scene", [triplet.source.background, "sky"])):
        tokens = concept_tokens(pipeline, [thing.noun, *others])
        maps = defaultdict(list)
        for (block, step), (query, key, _, output) in found.items():
            attention = pipeline.transformer.blocks[block - 1].attn2
            for variant, shares in variant_maps(attention, tokens, query, key, output).items():
                for place in (MEAN, f"block {block}", f"step {step}"):
                    maps[variant, place].append(shares.numpy().reshape(*mask.shape, len(tokens)))
        for (variant, place), each in maps.items():
            own, other = np.mean(each, axis=0)[..., :2].transpose(3, 0, 1, 2)
            figures = (auc(own, mask), auc(other, mask), own[mask].mean(), own[~mask].mean())
            rows[f"{name}, {variant}", place] = figures
    return rows


def word_auc(pipeline, triplet, thing, mask, found):
    """Return the AUC of the map that `analyze trace` shows of the thing's own word in the instruction."""
    positions = word_tokens(pipeline, triplet.instruction)[thing.noun]
    maps = []
    for query, key, first_text, _ in found.values():
        attention = torch.cat([rows.mean(dim=1)[0] for rows, _ in attention_rows(query[None], key[None])])
        maps.append(attention[:, [first_text + position for position in positions]].sum(dim=-1))
    return auc(torch.stack(maps).mean(dim=0).numpy().reshape(mask.shape), mask)


def estimate(values):
    """Return the mean over clips and its 95% interval."""
    column = np.array(values)[:, None]
    found = estimate_of(float(column.mean()), resampled_means(column, np.random.default_rng(0))[:, 0])
    return {name: round(value, 4) for name, value in asdict(found).items()}


def measure_kind(pipeline, named, shown, args):
    """Return the figures of the things that instructions name, or do not name."""
    rng = np.random.default_rng(0)
    clips, words, num_things = defaultdict(list), [], 0
    for triplet, things in held_out(args.count, args.seed, named):
        source = render(triplet.source, NUM_FRAMES, SIZE, SIZE)
        found = record(pipeline, triplet, source, shown)
        masks = [(thing, thing_mask(triplet.source, thing, pipeline.grid)) for thing in things]
        masks = [(thing, mask) for thing, mask in masks if mask.any()]  # others are hidden
        num_things += len(masks)
        rows = [measure(pipeline, triplet, thing, mask, found, rng) for thing, mask in masks]
        for key in rows[0] if rows else ():
            clips[key].append(np.mean([row[key] for row in rows], axis=0))
        if named:
            words += [word_auc(pipeline, triplet, thing, mask, found) for thing, mask in masks]
    result = {"things": num_things, "maps": {}, "auc by block and step": defaultdict(dict)}
    for (name, place), figures in clips.items():
        own, other, inside, outside = np.array(figures).T
        if place == MEAN:
            columns = {"auc": own, "other_auc": other, "difference": own - other}
            columns |= {"inside": inside, "outside": outside}
            result["maps"][name] = {column: estimate(values) for column, values in columns.items()}
        else:
            result["auc by block and step"][name][place] = round(float(own.mean()), 4)
    if named:
        result["own word"] = estimate(words)
    return result


def print_kind(kind, result):
    def interval(found):
        return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"

    rows = [
        (
            name,
            *(interval(row[key]) for key in ("auc", "other_auc", "difference")),
            *(f"{row[key]['value']:.2%}" for key in ("inside", "outside")),
        )
        for name, row in result["maps"].items()
    ]
    if "own word" in result:
        rows.append(("the word's own attention map", interval(result["own word"]), "", "", "", ""))
    print()
    headers = (f"{result['things']} things, {kind}", "AUC", "other AUC", "difference", "inside", "outside")
    print_table(headers, rows)


def main() -> None:
    parser = arguments(__doc__, chooses_device=False)
    parser.set_defaults(device=torch.device("cpu"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=100, help="clips of each of the two kinds")
    parser.add_argument("--seed", type=int, default=1_000_004, help="of the clips")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    pipeline = load_pipeline(args.model, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    num_blocks, depth = len(pipeline.transformer.blocks), pipeline.transformer.config.routing_depth
    blocks = [block for block in default_blocks(num_blocks, depth) if block > depth]
    steps = default_steps(pipeline.config.default_steps)
    shown = {(block, step) for block in blocks for step in steps}
    results = {"blocks": blocks, "steps": steps}
    for kind, named in (("not named", False), ("named", True)):
        results[kind] = measure_kind(pipeline, named, shown, args)
        print_kind(kind, results[kind])
    write_json(args, results)


if __name__ == "__main__":
    main()
