"""Kinds of answers: from the outputs of a graph to predictions. Numpy only, so that packages are read without torch."""

from typing import Annotated

from pydantic import Field

from up.bundle.answers.answer import Answer, Floats, Outputs, OutputSpec, Result
from up.bundle.answers.boxes import BoxesAnswer
from up.bundle.answers.classes import ClassesAnswer
from up.bundle.answers.pixels import PixelsAnswer

__all__ = ["Answer", "AnswerSpec", "BoxesAnswer", "ClassesAnswer", "Floats", "OutputSpec", "Outputs", "PixelsAnswer", "Result"]

AnswerSpec = Annotated[ClassesAnswer | PixelsAnswer | BoxesAnswer, Field(discriminator="kind")]
