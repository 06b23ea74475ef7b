"""The captioning prompt. Increase PROMPT_VERSION with every change: captions record it."""

PROMPT_VERSION = "1"

SYSTEM = (
    "You write captions of video clips for training a text-to-video model. You report what can be seen, "
    "plainly and completely, and nothing else."
)

BEFORE_FRAMES = "These are {count} frames of one clip, evenly spread, in order of time."

AFTER_FRAMES = (
    "Write one caption of the clip: a single paragraph of three to six sentences, in English, in the present "
    "tense. Say what the main subjects are and what they look like (kind, number, colour, material, "
    "clothing, place in the picture); what they do and how they move over time; the setting and the "
    "background; the light, the colours and the visual style (photograph, film, animation, drawing, painting "
    "and so on); and how the camera moves, if it does. Describe the clip as a whole, not frame by frame. "
    "State only what is visible: guess no names, intentions, sounds or events outside the clip, and quote "
    "writing only where it can be read. The clip stands for itself: do not speak of frames, of a caption, or "
    "of anything having been edited, added, removed or replaced. Answer with the caption alone, without a "
    "title, a list or quotation marks."
)
