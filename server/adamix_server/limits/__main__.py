from adamix_server.limits.page import page

print(page(), end="")
