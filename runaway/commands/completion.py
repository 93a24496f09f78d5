"""`runaway completion bash|zsh|fish`: the script that makes a shell complete our words."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def command(shell: str, as_json: bool) -> int:
    """Print the completion script for SHELL.

    \b
    bash: eval "$(runaway completion bash)"     in ~/.bashrc
    zsh:  eval "$(runaway completion zsh)"      in ~/.zshrc, after compinit
    fish: runaway completion fish | source      in ~/.config/fish/config.fish
    """
    import json

    from runaway.complete import SCRIPTS

    text = SCRIPTS[shell]
    click.echo(
        json.dumps({"schema_version": 1, "shell": shell, "script": text}) if as_json else text, nl=as_json
    )
    return 0
