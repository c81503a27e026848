-- A moderate load: each connection rests for up to 6 ms between an answer and its next request.
function delay()
    return math.random(0, 6)
end
