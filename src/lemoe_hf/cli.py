"""The command line as a module: `python -m lemoe_hf.cli`, for launchers such as `accelerate launch -m`."""

from lemoe_cli import app


if __name__ == "__main__":
    app()
