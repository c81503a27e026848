-- For wrk: the headers given with -H, and a request id that is new on every request.
local head, count = nil, 0

function init()
  head = wrk.format():sub(1, -3) .. "X-Request-Id: "
end

function request()
  count = count + 1
  return head .. string.format("%016x", count) .. "\r\n\r\n"
end
