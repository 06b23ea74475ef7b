"""Options of `rvedit edit`, in the order and the groups of its `--help`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rvedit_cli import console

_files = partial(console.option, console.FILES)
_model = partial(console.option, "Model and edit")
_rewrite = partial(console.option, "Words")
_server = partial(console.option, "Another machine")
_where = partial(console.option, "Where and when")
_sampling = partial(console.option, console.SAMPLING)
_memory = partial(console.option, console.MEMORY)
_batch = partial(console.option, "Batch (instead of INPUT and INSTRUCTION)")
_MASK_HELP = (
    "Video or image of the clip's size that is white where the edit may change something. Give it once, or "
    "once for each instruction, in their order."
)
_REGION_HELP = (
    'Region that the edit may change: words, such as "the dog", or a box as LEFT,TOP,WIDTH,HEIGHT, each in '
    "percent of the frame or in pixels, such as 10%,20%,40%,50%. Give it as --mask."
)
_RAY_HELP = "With --batch: edit on a Ray cluster: its address, auto, or local to start one."
_SEGMENTER_HELP = (
    "With --region WORDS: the model that finds the objects, or two as DETECTOR+TRACKER. Default: Grounding "
    "DINO and SAM 2.1, both Apache-2.0."
)
_FROM_HELP = "Edit from this moment on: seconds, such as 3.5 or 0:03.5, or a frame, such as 75f."
_MODELS, _DETAIL, _OFFLOAD = "nano|DIR|HUB_ID|lucy|vace|ditto", "auto|off|0-1", "auto|none|model|group"
_FAST = "first-block|magcache|taylorseer"
_Input = typer.Argument(metavar="INPUT", help="Video, image, or folder of frames.")
_Instruction = typer.Argument(
    metavar="INSTRUCTION...",
    help='What to change, such as "replace the dog with a corgi". Several are applied one after another.',
)
_DETAIL_HELP = (
    "Strength of detail transfer from source to edit. auto: 1, or 0 for edits with a texture of their own, "
    "such as pixel art."
)
_OFFLOAD_HELP = (
    "Keep weights in host memory until they are needed: components (model) or groups of layers (group). "
    "auto: model if GPU memory is short, otherwise none."
)
_TOGETHER_HELP = "With --batch: number of short clips of equal size and length to edit in one pass."

Source = Annotated[Path | None, _Input]
Instructions = Annotated[list[str] | None, _Instruction]
Output = Annotated[
    Path | None, _files("Output file. Default: INPUT_edited in the working directory.", "-o", "--output")
]
Compare = Annotated[bool, _files("Also write source and edit side by side.", "--compare")]
ContactSheet = Annotated[
    Path | None, _files("Also write a picture of source and edit at eight moments.", metavar="PNG|JPG")
]
Preview = Annotated[
    Path | None,
    _files(
        "Also write a small animated picture of the edit every few steps, while it is computed.",
        metavar="GIF|WEBP",
    ),
]
PreviewDecoder = Annotated[
    Path | None,
    _files("With --preview: a tiny decoder for it, such as taew2_2.safetensors.", metavar="SAFETENSORS"),
]
AllowTruncated = Annotated[bool, _files("Edit the decodable part of a damaged video.", "--allow-truncated")]
Model = Annotated[
    str | None, _model("Model to edit with. Default: nano.", metavar=_MODELS, envvar="RVEDIT_MODEL")
]
Lora = Annotated[
    list[str] | None,
    _model(
        "LoRA weights to add to the model, and the factor of their effect, if it is not 1. Repeatable.",
        metavar="FILE|HUB_ID[:WEIGHT]",
    ),
]
Transformer = Annotated[
    Path | None,
    _model(
        "Weights of the transformer, instead of those in the model's folder, such as a GGUF file.",
        metavar="SAFETENSORS|GGUF",
    ),
]
Rewrite = Annotated[
    bool,
    _rewrite(
        "Let a chat model make INSTRUCTION precise, or split it into steps. You see and change the words "
        "before anything runs.",
        "--rewrite",
    ),
]
RewriteWith = Annotated[
    str | None,
    _rewrite(
        "OpenAI-compatible server, or a local Qwen-VL. [env: RVEDIT_REWRITE_BASE_URL, and _API_KEY]",
        metavar="URL|DIR|HUB_ID",
    ),
]
RewriteModel = Annotated[
    str | None,
    _rewrite("Its name at the server. [env: RVEDIT_REWRITE_MODEL; default: Qwen/Qwen3-VL-8B-Instruct]"),
]
Yes = Annotated[bool, _rewrite("With --rewrite: edit with the new words without asking.", "--yes")]
Server = Annotated[
    str | None,
    _server(
        "Send the edit to a running `rvedit studio`, and bring the clip back. Its user and password are read "
        "from RVEDIT_STUDIO_AUTH.",
        metavar="URL",
    ),
]
Preserve = Annotated[bool, _model("Keep the source's pixels where the edit changes nothing.", "--preserve")]
Detail = Annotated[str, _model(_DETAIL_HELP, metavar=_DETAIL)]
Description = Annotated[
    list[str] | None,
    _model("With vace: description of the edited video, instead of INSTRUCTION. One for each instruction."),
]
Reference = Annotated[
    list[Path] | None,
    _model(
        'Picture of what INSTRUCTION refers to, such as "this hat", for models that read one. Give it once, '
        "or once for each instruction.",
        metavar="IMAGE",
    ),
]
Mask = Annotated[list[Path] | None, _where(_MASK_HELP)]
Region = Annotated[list[str] | None, _where(_REGION_HELP, metavar="WORDS|BOX")]
Segmenter = Annotated[str | None, _where(_SEGMENTER_HELP, metavar="HUB_ID|DIR")]
Grow = Annotated[int, _where("Number of pixels that the mask is grown by to all sides.", min=0)]
InvertMask = Annotated[bool, _where("Change what is outside the mask instead.", "--invert-mask")]
SaveMask = Annotated[
    Path | None,
    _where("Also write the mask, as grown and inverted, as a video or, for a still mask, an image."),
]
Start = Annotated[str | None, _where(_FROM_HELP, "--from", metavar="TIME")]
Stop = Annotated[str | None, _where("Edit until just before this moment.", "--to", metavar="TIME")]
Fade = Annotated[float, _where("With --from or --to: seconds over which the edit fades in and out.", min=0)]
Guidance = Annotated[
    float | None, _sampling("Guidance scale; 1 turns guidance off. Default: the model's own.", min=0)
]
Shift = Annotated[
    float | None, _sampling("Shift of the timesteps towards noise; 1 is none. Default: the model's own.")
]
Sigmas = Annotated[
    str | None,
    _sampling("Noise levels of the steps, such as 1,0.75,0.5,0.25, instead of --steps and --shift."),
]
Offload = Annotated[str, _memory(_OFFLOAD_HELP, metavar=_OFFLOAD)]
Quantization = Annotated[
    str | None,
    _memory("Store large weight matrices in fewer bits.", "--quantize", metavar="int8|fp8|nf4"),
]
VaeTiling = Annotated[
    bool, _memory("Encode and decode in tiles. Slower, but needs less memory.", "--vae-tiling")
]
Fast = Annotated[
    str | None, _memory("Reuse results of earlier denoising steps. Faster, less exact.", metavar=_FAST)
]
Compiled = Annotated[bool, _memory("Compile the transformer blocks. Pays off for long videos.", "--compile")]
Attention = Annotated[
    str | None, _memory("Attention backend, by its name in diffusers, such as flash.", metavar="NAME")
]
Plan = Annotated[bool, _memory("Estimate memory and time without loading weights.", "--plan")]
Card = Annotated[
    float | None, _memory("With --plan: suggest options for a GPU with so many GB of memory.", min=1)
]
Batch = Annotated[
    Path | None, _batch("Edit all items of a benchmark's CSV or a manifest.", metavar="CSV|MANIFEST")
]
OutDir = Annotated[Path | None, _batch("With --batch: output folder.")]
Shard = Annotated[str, _batch("With --batch: edit part I of N, such as 1/4.", metavar="I/N")]
Limit = Annotated[int | None, _batch("With --batch: edit only the first items.", min=1)]
Together = Annotated[int, _batch(_TOGETHER_HELP, min=1)]
Ray = Annotated[
    str | None,
    _batch(
        "With --batch: edit on a Ray cluster: its address, auto, or local to start one.", metavar="ADDRESS"
    ),
]
