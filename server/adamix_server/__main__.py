from adamix_server.cli import main

main()
