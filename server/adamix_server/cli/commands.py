"""The table of the commands that run a server or talk to one. A new one is a line here and a file beside this one."""

from adamix.cli.lazy import Command

COMMANDS = (
    Command(
        "serve",
        "adamix_server.cli.serve:serve",
        "Serve adapters over gRPC, and over HTTP with --http, until SIGTERM or Ctrl-C.",
    ),
    Command(
        "register",
        "adamix_server.cli.register:register",
        "Upload an adapter as a new version of a task.",
    ),
    Command("predict", "adamix_server.cli.predict:predict", "Ask a task about texts."),
    Command("generate", "adamix_server.cli.generate:generate", "Let a task write a text, and show it as it comes."),
    Command("embed", "adamix_server.cli.embed:embed", "Print the embedding of each text, a line each."),
    Command(
        "apply",
        "adamix_server.cli.apply:apply",
        "Make a server what a file declares: tasks, versions, traffic, pins and grants.",
    ),
    Command("tasks", "adamix_server.cli.tasks:tasks", "List the tasks of a server."),
    Command(
        "show",
        "adamix_server.cli.tasks:show_task",
        "Show a task with its versions, or all that is known of one version.",
    ),
    Command("versions", "adamix_server.cli.tasks:versions", "List the versions of a task, newest first."),
    Command(
        "traffic",
        "adamix_server.cli.traffic:traffic",
        "Share a task's traffic among versions, or say how it is shared.",
    ),
    Command(
        "rollback",
        "adamix_server.cli.traffic:rollback",
        "Make the version that was live before the current one live again.",
    ),
    Command(
        "delete", "adamix_server.cli.delete:delete", "Delete a task with all its versions, or one that is not live."
    ),
    Command(
        "load",
        "adamix_server.cli.residency:load",
        "Bring a version into a slot if one is free, else to host memory; lifts its quarantine.",
    ),
    Command(
        "unload",
        "adamix_server.cli.residency:unload",
        "Take a version out of the server's memory until somebody asks for it.",
    ),
    Command("pin", "adamix_server.cli.residency:pin", "Keep a version in a slot, over every restart."),
    Command("unpin", "adamix_server.cli.residency:unpin", "Keep it in its slot no longer."),
    Command("info", "adamix_server.cli.server_state:info", "Say what a server is, and how busy."),
    Command(
        "top",
        "adamix_server.cli.top:top",
        "Show a server at work until Ctrl-C: calls a second, queue, batches, residency.",
    ),
    Command(
        "health",
        "adamix_server.cli.server_state:health",
        "Say whether a server serves; the exit code is 0 if it does, else 1.",
    ),
    Command(
        "drain",
        "adamix_server.cli.server_state:drain",
        "Ask a server to finish what runs and to end, as SIGTERM does.",
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
