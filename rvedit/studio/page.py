"""The page: a form on the left, results and the queue on the right."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from rvedit.io.errors import UserError
from rvedit.studio.studio import Studio
from rvedit.studio.uploads import canvas_of, check_upload, strip_of, write_drawn_mask

_EXAMPLE = "replace the dog with a corgi"
_EMPTY_CANVAS: dict[str, Any] = {"background": None, "layers": [], "composite": None}


def asset(name: str) -> str:
    """Return the text of a file beside this module."""
    return files("rvedit.studio").joinpath("assets", name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Return the theme: system fonts, so that nothing is fetched."""
    base = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return base.set(  # more contrast
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def build_page(studio: Studio) -> gr.Blocks:
    """Return the page, with the endpoints for gradio_client: edit, job, jobs, cancel, again."""
    with gr.Blocks(title="rvedit studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(asset("header.html"), elem_id="rv-header")
        with gr.Row(elem_id="rv-main"):
            with gr.Column(scale=4, min_width=340, elem_id="rv-form"):
                _build_form(studio)
            with gr.Column(scale=7, min_width=340, elem_id="rv-side"):
                _build_results(studio)
        _build_api(studio)
    return page


def _build_form(studio: Studio) -> None:
    config = studio.config
    clip = gr.File(label="Clip or picture", height=112, elem_id="rv-clip")
    strip = gr.HTML(
        {},
        html_template='<div class="rv-strip" hidden></div>',
        js_on_load=asset("strip.js"),
        elem_id="rv-strip",
    )
    instruction = gr.Textbox(
        label="Instruction",
        info="Several lines are applied one after another.",
        placeholder=_EXAMPLE,
        lines=2,
        max_lines=8,
        elem_id="rv-instruction",
    )
    has_rewriter = config.rewriter is not None
    precise = gr.Button(
        "Make it precise" if has_rewriter else "Make it precise: no chat model is set (--rewrite-with)",
        size="sm",
        interactive=has_rewriter,
        elem_id="rv-precise",
    )
    note = gr.Markdown("", elem_id="rv-note", visible=False)
    with gr.Accordion("Where and when", open=False, elem_id="rv-where"):
        with gr.Row():
            start = gr.Textbox(label="From", placeholder="start", elem_id="rv-from", min_width=90)
            stop = gr.Textbox(label="To", placeholder="end", elem_id="rv-to", min_width=90)
            fade = gr.Number(0, label="Fade, s", minimum=0, min_width=90)
        region = gr.Textbox(
            label="Region",
            info="Words, such as the dog, or a box: left, top, width, height.",
            placeholder="10%,20%,40%,50%",
            elem_id="rv-region",
        )
        canvas = gr.ImageEditor(
            _EMPTY_CANVAS,
            label="Or draw it",
            sources=[],
            transforms=[],
            layers=False,
            brush=gr.Brush(colors=["#ff5a36"], color_mode="fixed", default_size=24),
            buttons=["fullscreen"],
            height=340,
            elem_id="rv-mask",
        )
        frame = gr.Button("Draw on the frame at From instead", size="sm", elem_id="rv-frame")
        with gr.Row():
            grow = gr.Number(0, label="Grow by pixels", minimum=0, precision=0, min_width=120)
            invert = gr.Checkbox(label="Everywhere but there", min_width=120)
    with gr.Accordion("Settings", open=False, elem_id="rv-settings"):
        model = gr.Dropdown(list(config.models), value=config.models[0], label="Model", elem_id="rv-model")
        lora = gr.Dropdown(
            list(config.loras),
            multiselect=True,
            label="Adapters (LoRA)",
            visible=bool(config.loras),
        )
        needs = gr.Button("What does it need?", size="sm", elem_id="rv-needs")
        plan = gr.Markdown("", elem_id="rv-plan", visible=False)
        with gr.Row():
            seed = gr.Number(0, label="Seed", minimum=0, precision=0, min_width=90, elem_id="rv-seed")
            steps = gr.Textbox(
                label="Steps", placeholder="auto", max_lines=1, min_width=90, elem_id="rv-steps"
            )
            guidance = gr.Textbox(label="Guidance", placeholder="auto", max_lines=1, min_width=90)
        with gr.Row():
            has_detail = gr.Checkbox(True, label="Automatic detail", min_width=150)
            preserve = gr.Checkbox(label="Keep unchanged pixels", min_width=150)
        detail = gr.Slider(0, 1, value=1, step=0.05, label="Detail of the source", visible=False)
        reference = gr.File(label="Reference picture, for models that read one", height=130)
        description = gr.Textbox(label="Description of the result, for VACE", lines=1)
    edit = gr.Button("Edit", variant="primary", size="lg", elem_id="rv-edit")

    form = {
        "instructions": instruction,
        "model": model,
        "lora": lora,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "preserve": preserve,
        "automatic": has_detail,
        "detail": detail,
        "description": description,
        "region": region,
        "grow": grow,
        "invert_mask": invert,
        "start": start,
        "stop": stop,
        "fade": fade,
    }

    def uploaded(path: str | None) -> Path:
        if path is None:
            raise UserError("no clip: drop one first")
        return check_upload(path, studio.store.uploads)

    @_as_toast
    def show_clip(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return {}, "", "", _EMPTY_CANVAS
        file = uploaded(path)
        try:
            return strip_of(file), "", "", {**_EMPTY_CANVAS, "background": canvas_of(file, None)}
        except UserError as error:
            raise UserError(str(error).replace(f"{file}", file.name)) from None

    @_as_toast
    def show_frame(path: str | None, moment: str) -> dict[str, Any]:
        return {**_EMPTY_CANVAS, "background": canvas_of(uploaded(path), moment)}

    @_as_toast
    def submit(path: str | None, drawing: dict[str, Any], picture: str | None, *inputs: Any) -> None:
        values = _values(dict(zip(form, inputs, strict=True)))
        file = uploaded(path)
        mask = studio.store.uploads / f"mask-{secrets.token_hex(8)}.png"
        drawn = write_drawn_mask((drawing or _EMPTY_CANVAS)["layers"], file, mask)
        studio.submit(values, file, mask if drawn else None, picture)

    @_as_toast
    def show_needs(path: str | None, *inputs: Any) -> Any:
        values = dict(zip(form, inputs, strict=True))
        values["instructions"] = values["instructions"].strip() or _EXAMPLE  # only their number counts
        return gr.Markdown(studio.plan(_values(values), uploaded(path)), visible=True)

    @_as_toast
    def rewrite(text: str, path: str | None) -> tuple[str, Any]:
        lines = studio.rewrite(text, path)
        return "\n".join(lines), gr.Markdown(
            f"Rewritten: change the words as you like. You wrote: {text}", visible=True
        )

    def set_range(event: gr.EventData) -> tuple[str, str]:
        return event.start, event.stop

    clip.change(
        show_clip, clip, [strip, start, stop, canvas], show_progress="minimal", api_visibility="private"
    )
    strip.range(set_range, None, [start, stop], show_progress="hidden", api_visibility="private")
    frame.click(show_frame, [clip, start], canvas, api_visibility="private")
    has_detail.change(
        lambda automatic: gr.Slider(visible=not automatic), has_detail, detail, api_visibility="private"
    )
    needs.click(show_needs, [clip, *form.values()], plan, api_visibility="private")
    precise.click(rewrite, [instruction, clip], [instruction, note], api_visibility="private")
    edit.click(submit, [clip, canvas, reference, *form.values()], None, api_visibility="private")


def _values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an `EditRequest` for the values of the form, without those left empty."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    for name in ("instructions", "description"):
        if name in given:
            given[name] = [line for line in given[name].splitlines() if line.strip()]
    if given.pop("automatic", True):
        given.pop("detail", None)
    if not given.get("instructions"):
        raise UserError(f'no instruction: write one, such as "{_EXAMPLE}"')
    return given


def _as_toast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show a UserError in a corner of the page."""

    @wraps(function)
    def shown(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False, title="") from None

    return shown


def _build_results(studio: Studio) -> None:
    def jobs(_: Any = None) -> list[dict[str, Any]]:
        return [studio.describe(job) for job in studio.store.jobs()]

    def cancel(job_id: str) -> None:
        studio.worker.cancel(str(job_id))

    def again(job_id: str) -> str:
        return studio.again(str(job_id)).id

    gr.HTML(
        "",
        html_template=asset("results.html"),
        js_on_load=asset("results.js"),
        server_functions=[jobs, cancel, again],
        elem_id="rv-results",
    )


def _build_api(studio: Studio) -> None:
    """Add the endpoints for gradio_client."""

    def path_of(file: dict[str, Any] | None) -> str | None:
        return None if file is None else str(file.get("path", ""))

    def edit(
        clip: dict[str, Any],
        instructions: list[str],
        options: dict[str, Any] | None = None,
        mask: dict[str, Any] | None = None,
        reference: dict[str, Any] | None = None,
    ) -> str:
        """Queue an edit of an uploaded clip; return the id of its job. Options are those of `EditRequest`."""
        values = {**(options or {}), "instructions": instructions}
        return studio.submit(values, path_of(clip) or "", path_of(mask), path_of(reference)).id

    def job(job_id: str) -> dict[str, Any]:
        """Return state, progress and files of a job."""
        return studio.describe(studio.store.get(job_id))

    def jobs() -> list[dict[str, Any]]:
        """Return all jobs, the oldest first."""
        return [studio.describe(job) for job in studio.store.jobs()]

    def cancel(job_id: str) -> dict[str, Any]:
        """Cancel a job, and return it."""
        studio.worker.cancel(job_id)
        return job(job_id)

    def again(job_id: str) -> str:
        """Queue a job once more with another seed; return the new id."""
        return studio.again(job_id).id

    for function in (edit, job, jobs, cancel, again):
        gr.api(_as_toast(function), api_name=function.__name__, queue=False)
