-- For wrk: `wrk -s load.lua URL -- KIND [NUMBER]` makes requests of this kind and prints its counts as a line of JSON.
local kinds = {}

-- The same GET again and again.
function kinds.plain()
end

-- The same POST again and again, with a body of this many bytes.
function kinds.post(size)
  wrk.method = "POST"
  wrk.body = string.rep("x", size)
end

-- This many GETs at once on a connection, and again when all are answered.
function kinds.pipeline(depth)
  local batch = string.rep(wrk.format(), depth)
  request = function() return batch end
end

-- What browsers send: this many requests in turn, each with a path, query, cookie and id of its own, and eleven fields beside Host.
function kinds.real(count)
  math.randomseed(1) -- the same requests in every run
  local function token(length)
    local digits = {}
    for at = 1, length do digits[at] = string.format("%x", math.random(0, 15)) end
    return table.concat(digits)
  end
  local function one_of(list) return list[math.random(#list)] end
  local systems = {"X11; Linux x86_64", "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10.15"}
  local languages = {"en-GB,en;q=0.7,de;q=0.3", "de,en-US;q=0.7,en;q=0.3", "fr-FR,fr;q=0.8,en;q=0.5"}
  local lines = table.concat({
    "GET /%s/%s/%d?page=%d&sort=%s HTTP/1.1",
    "Host: " .. wrk.headers["Host"],
    "User-Agent: Mozilla/5.0 (%s; rv:%d.0) Gecko/20100101 Firefox/%d.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: %s",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: https://shop.example/%s?page=%d",
    "Cookie: session=%s; csrftoken=%s",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: same-origin",
    "X-Request-Id: %s",
    "", "",
  }, "\r\n")
  local requests, at = {}, 0
  for number = 1, count do
    local section, version, page = one_of({"books", "music", "garden", "kitchen"}), math.random(110, 150), math.random(2, 999)
    requests[number] = string.format(lines,
      section, token(8), number, page, token(6), one_of(systems), version, version, one_of(languages),
      section, page - 1, token(32), token(32), token(32))
  end
  request = function()
    at = at % count + 1
    return requests[at]
  end
end

function init(arguments)
  kinds[arguments[1]](tonumber(arguments[2]))
end

function done(summary)
  local failed = 0
  for _, number in pairs(summary.errors) do failed = failed + number end
  io.write(string.format('\n{"requests": %d, "bytes": %d, "failed": %d, "seconds": %f}\n',
    summary.requests, summary.bytes, failed, summary.duration / 1e6))
end
