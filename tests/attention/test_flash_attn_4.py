"""flash-attn 4 compiles everything our kernel says it can do. Needs the package, and no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flash_attn.cute", reason="needs flash-attn 4")


@pytest.mark.parametrize("major", [9, 10])
def test_flash_attn_4_compiles_what_we_ask_it_for(major):
    target = {
        "FLASH_ATTENTION_ARCH": f"sm_{major}0",
        "CUTE_DSL_ARCH": f"sm_{major}0a",
        "FLASH_ATTENTION_NUM_SMS": "132",
    }
    words = [sys.executable, "-W", "ignore", Path(__file__).with_name("compile_flash_attn_4.py"), str(major)]
    done = subprocess.run(words, env=os.environ | target, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
