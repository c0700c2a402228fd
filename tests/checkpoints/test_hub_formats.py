"""Folders that GPTQ, AWQ and NF4 libraries wrote (tests/golden/make_hub.py), and what is refused of them."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gemma_np
from gemma_np import GemmaError
from gemma_np.weights.formats import Int4, Int8, Nf4, dequantize
from tests.golden.make_hub_folder import FOLDER

FORMATS = {"gptq": Int4, "gptq-symmetric": Int4, "gptq-8": Int8, "awq": Int4, "nf4": Nf4, "nf4-double": Nf4}
