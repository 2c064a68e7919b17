"""One rank: `accelerate launch -m hsap_hf.train RECIPE [section.key=value ...]`, or torchrun, or `hsap train`."""

from __future__ import annotations

import os
import sys

from hsap_hf.errors import ConfigError, HsapError


def main(arguments: list[str]) -> int:
    """0 good, 1 failed, 2 bad configuration; an error of ours is one text, without a traceback."""
    flags = {text for text in arguments if text.startswith("--")}
    recipe_file, *overrides = [text for text in arguments if text not in flags] or [None]
    if recipe_file is None or flags - {"--verify", "--trust-remote-code"}:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    try:
        from hsap_hf.train.recipe import load_recipe
        from hsap_hf.train.run import run, shut_down

        recipe = load_recipe(recipe_file, overrides)
        passed = run(recipe, only_verify="--verify" in flags, trust_remote_code="--trust-remote-code" in flags)
        shut_down()
    except HsapError as error:
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\n")  # at once: ranks share a terminal
        return 2 if isinstance(error, ConfigError) else 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
