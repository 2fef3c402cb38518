"""The table of the commands that make and measure adapters. A new one is a line here and a file beside this one."""

from adamix.cli.lazy import Command

# In the order of work.
COMMANDS = (
    Command("train", "adamix.cli.train:train", "Train a mixture of adaptations on a frozen backbone."),
    Command(
        "recipes",
        "adamix.cli.recipes:recipes",
        "List the published settings that `train --recipe` takes, and where they are from.",
    ),
    Command(
        "few-shot",
        "adamix.cli.few_shot:few_shot",
        "Train on K rows with several seeds, and report mean and deviation of the merged adapters on held-out rows.",
        context={"allow_extra_args": True, "ignore_unknown_options": True},
        also="adamix.cli.train:train",
    ),
    Command(
        "sweep",
        "adamix.cli.sweep:sweep",
        "Train, merge and measure many tasks. The exit code is 1 if any of them failed.",
    ),
    Command("merge", "adamix.cli.merge:merge", "Merge a mixture into one adapter file."),
    Command(
        "evaluate",
        "adamix.cli.evaluate:evaluate",
        "Measure an adapter on labelled text, or a trained mixture by other routes through its experts.",
    ),
    Command(
        "glue",
        "adamix.cli.glue:glue",
        "Tabulate the results of GLUE tasks, with the averages of the paper's Tables 1 and 2.",
    ),
    Command(
        "report",
        "adamix.cli.report:report",
        "Write one self-contained page on a training or an adapter, and a model card.",
    ),
    Command("inspect", "adamix.cli.inspect:inspect", "Show what an adapter file says about itself."),
    Command("import", "adamix.cli.interop:imports", "Make an adapter file of what another library trained."),
    Command("export", "adamix.cli.interop:exports", "Write an adapter for another library."),
    Command(
        "completion",
        "adamix.cli.completion:completion",
        "Print the script that completes commands and options in a shell.",
    ),
)
