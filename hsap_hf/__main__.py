"""`python -m hsap_hf` is `hsap`."""

from hsap_hf.cli import main

if __name__ == "__main__":
    main()
