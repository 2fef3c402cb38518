"""The table of the commands that run a server or talk to one. A new one is a line here and a file beside this one."""

from adamix.cli.lazy import Command

COMMANDS = (
    Command(
        "serve",
        "adamix_server.cli.serve:serve",
        "Serve adapters over gRPC, and over HTTP with --http, until SIGTERM or Ctrl-C.",
    ),
    Command("register", "adamix_server.cli.register:register", "Upload an adapter as a new version of a task."),
    Command("predict", "adamix_server.cli.predict:predict", "Ask a task about texts."),
    Command("generate", "adamix_server.cli.generate:generate", "Let a task write a text, and show it as it comes."),
    Command("tasks", "adamix_server.cli.tasks:tasks", "List the tasks of a server."),
    Command("versions", "adamix_server.cli.tasks:versions", "List the versions of a task, newest first."),
    Command(
        "rollback",
        "adamix_server.cli.tasks:rollback",
        "Make the version that was live before the current one live again.",
    ),
    Command("whoami", "adamix_server.cli.who:whoami", "Say who the server takes this command for."),
    Command(
        "usage",
        "adamix_server.cli.who:usage",
        "What a tenant has used since it was made, and what it has now. Some seconds late.",
    ),
    Command("audit", "adamix_server.cli.audit:audit", "Who did what, when, and how it ended."),
    Command("tenants", "adamix_server.cli.tenants:app", "Make, change and delete tenants."),
    Command("keys", "adamix_server.cli.keys:app", "Make, list and revoke keys."),
    Command("grants", "adamix_server.cli.grants:app", "Lend tasks to other tenants."),
    Command("store", "adamix_server.cli.store:app", "Back up, restore and check a store."),
)
