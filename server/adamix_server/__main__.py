from adamix_server.cli.main import main

main()
