# cloud-config as vtorque writes it, every value JSON on one line, to a shell script.

function decoded(text, i,    out, c) {
    # The JSON string that begins at place i; `after` is the place behind it.
    out = ""
    for (i++; (c = substr(text, i, 1)) != "\""; i++) {
        if (c == "\\") {
            c = substr(text, ++i, 1)
            if (c == "n") c = "\n"
            else if (c == "t") c = "\t"
            else if (c == "r") c = "\r"
            else if (c == "u") {
                c = sprintf("%c", hex(substr(text, i + 1, 4)))
                i += 4
            }
        }
        out = out c
    }
    after = i + 1
    return out
}

function hex(digits,    n, i) {
    n = 0
    for (i = 1; i <= length(digits); i++)
        n = n * 16 + index("0123456789abcdef", tolower(substr(digits, i, 1))) - 1
    return n
}

function quoted(text) {
    gsub(/'/, "'\\''", text)
    return "'" text "'"
}

function value(line) {
    return decoded(line, index(line, "\""))
}

function put(path, permissions, content) {
    print "mkdir -p " quoted(substr(path, 1, match(path, /[^\/]*$/) - 1))
    print "printf '%s' " quoted(content) " >" quoted(path)
    print "chmod " permissions " " quoted(path)
}

/^[a-z_]+:/ { section = $1 }
section == "ssh_keys:" && /ed25519_private:/ { put("/etc/ssh/ssh_host_ed25519_key", "0600", value($0)) }
section == "write_files:" && /- path:/ { path = value($0) }
section == "write_files:" && /permissions:/ { permissions = value($0) }
section == "write_files:" && /content:/ { put(path, permissions, value($0)) }
(section == "bootcmd:" || section == "runcmd:") && /^ *- \[/ {
    command = ""
    for (place = index($0, "\""); place > 0 && place <= length($0); ) {
        command = command " " quoted(decoded($0, place))
        rest = index(substr($0, after), "\"")
        place = rest ? after + rest - 1 : 0
    }
    print command
}
