"""Request heads as usual clients, proxies and health checkers send them.

In `_HEADS` a line with a number sign begins a head and names its sender; the lines below it are the head.
"""

_HEADS = """
# Firefox, a page
GET /shop/items?page=2&q=t%C3%A9 HTTP/1.1
Host: shop.example.com
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
Accept-Language: en-GB,en;q=0.7,de;q=0.3
Accept-Encoding: gzip, deflate, br, zstd
Referer: https://shop.example.com/
Connection: keep-alive
Cookie: sessionid=0123456789abcdef; csrftoken=fedcba9876543210
Upgrade-Insecure-Requests: 1
Sec-Fetch-Dest: document
Sec-Fetch-Mode: navigate
Sec-Fetch-Site: same-origin
Sec-Fetch-User: ?1
Priority: u=0, i
DNT: 1
Sec-GPC: 1

# Firefox, fetch of JSON
POST /api/items HTTP/1.1
Host: localhost:8000
User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:145.0) Gecko/20100101 Firefox/145.0
Accept: */*
Accept-Language: fr,fr-FR;q=0.8
Accept-Encoding: gzip, deflate
Content-Type: application/json
Content-Length: 27
Origin: http://localhost:3000
Connection: keep-alive
Referer: http://localhost:3000/
Sec-Fetch-Dest: empty
Sec-Fetch-Mode: cors
Sec-Fetch-Site: same-site

# Chrome, a page
GET / HTTP/1.1
Host: 127.0.0.1:8000
Connection: keep-alive
Cache-Control: max-age=0
sec-ch-ua: "Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Windows"
Upgrade-Insecure-Requests: 1
User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8
Sec-Fetch-Site: none
Sec-Fetch-Mode: navigate
Sec-Fetch-User: ?1
Sec-Fetch-Dest: document
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9

# Chrome, a script that is revalidated
GET /static/app.3f2a.js HTTP/1.1
Host: shop.example.com
Connection: keep-alive
sec-ch-ua-platform: "macOS"
User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36
sec-ch-ua: "Chromium";v="142"
sec-ch-ua-mobile: ?0
Accept: */*
Sec-Fetch-Site: same-origin
Sec-Fetch-Mode: no-cors
Sec-Fetch-Dest: script
Referer: https://shop.example.com/
Accept-Encoding: gzip, deflate, br, zstd
If-None-Match: W/"5d8c72a5edda8d6a"
If-Modified-Since: Tue, 04 Nov 2025 10:00:00 GMT

# Chrome, preflight
OPTIONS /api/items HTTP/1.1
Host: api.example.com
Connection: keep-alive
Accept: */*
Access-Control-Request-Method: PATCH
Access-Control-Request-Headers: authorization,content-type
Origin: https://app.example.com
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36
Sec-Fetch-Mode: cors
Sec-Fetch-Site: same-site
Sec-Fetch-Dest: empty

# Chrome, upload of a form
POST /upload HTTP/1.1
Host: localhost:8000
Connection: keep-alive
Content-Length: 18237
Cache-Control: max-age=0
Origin: http://localhost:8000
Content-Type: multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW
Accept: text/html,*/*;q=0.8
Referer: http://localhost:8000/upload

# Chrome, video by ranges
GET /media/film.mp4 HTTP/1.1
Host: cdn.example.com
Connection: keep-alive
Accept-Encoding: identity;q=1, *;q=0
User-Agent: Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36
Accept: */*
Sec-Fetch-Dest: video
Range: bytes=1048576-
If-Range: "abc"

# Chrome, EventSource
GET /events HTTP/1.1
Host: localhost:8000
Connection: keep-alive
Accept: text/event-stream
Cache-Control: no-cache
Last-Event-ID: 42
Sec-Fetch-Site: same-origin

# Safari on iOS
GET /a/b.html HTTP/1.1
Host: www.example.com
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
Connection: keep-alive
Cookie: a=b
User-Agent: Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1
Accept-Language: en-GB,en;q=0.9
Accept-Encoding: gzip, deflate, br

# Edge, speculative loading
GET /next HTTP/1.1
Host: example.com
Sec-Purpose: prefetch;prerender
Purpose: prefetch
User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0

# htmx
GET /contacts?q=an HTTP/1.1
Host: localhost:8000
HX-Request: true
HX-Trigger: search
HX-Trigger-Name: q
HX-Target: results
HX-Current-URL: http://localhost:8000/contacts
X-CSRFToken: abc
X-Requested-With: XMLHttpRequest
Accept: */*

# curl
GET / HTTP/1.1
Host: localhost:8000
User-Agent: curl/8.11.0
Accept: */*

# curl with a name and password
GET /secret HTTP/1.1
Host: localhost:8000
Authorization: Basic dXNlcjpwYXNz
User-Agent: curl/7.88.1
Accept: */*

# curl, a form
POST /form HTTP/1.1
Host: [::1]:8000
User-Agent: curl/8.11.0
Accept: */*
Content-Length: 7
Content-Type: application/x-www-form-urlencoded

# curl, an upload of unknown length
PUT /file HTTP/1.1
Host: localhost:8000
User-Agent: curl/8.11.0
Accept: */*
Transfer-Encoding: chunked

# curl --http1.0
GET / HTTP/1.0
Host: localhost:8000
User-Agent: curl/8.11.0
Accept: */*

# Wget
GET /file.tar.gz HTTP/1.1
Host: localhost:8000
User-Agent: Wget/1.21.3
Accept: */*
Accept-Encoding: identity
Connection: Keep-Alive

# Wget of BusyBox
GET / HTTP/1.1
Host: localhost:8000
User-Agent: Wget
Connection: close

# HTTPie
POST /post HTTP/1.1
Host: localhost:8000
User-Agent: HTTPie/3.2.4
Accept-Encoding: gzip, deflate, br
Accept: application/json, */*;q=0.5
Connection: keep-alive
Content-Type: application/json
Content-Length: 14

# Python urllib
GET / HTTP/1.1
Accept-Encoding: identity
Host: localhost:8000
User-Agent: Python-urllib/3.11
Connection: close

# Python requests
GET /get?a=1 HTTP/1.1
Host: localhost:8000
User-Agent: python-requests/2.32.3
Accept-Encoding: gzip, deflate
Accept: */*
Connection: keep-alive

# Python httpx
DELETE /items/1 HTTP/1.1
Host: localhost:8000
Accept: */*
Accept-Encoding: gzip, deflate, br, zstd
Connection: keep-alive
User-Agent: python-httpx/0.28.1

# Python aiohttp
PATCH /items/1 HTTP/1.1
Host: localhost:8000
Accept: */*
Accept-Encoding: gzip, deflate
User-Agent: Python/3.11 aiohttp/3.11.10
Content-Length: 10
Content-Type: application/json

# Scrapy
GET /robots.txt HTTP/1.1
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
Accept-Language: en
User-Agent: Scrapy/2.12.0 (+https://scrapy.org)
Accept-Encoding: gzip, deflate
Host: localhost:8000

# Go net/http
GET /items HTTP/1.1
Host: localhost:8000
User-Agent: Go-http-client/1.1
Accept-Encoding: gzip

# Go net/http, a stream
POST /items HTTP/1.1
Host: localhost:8000
User-Agent: Go-http-client/1.1
Transfer-Encoding: chunked
Content-Type: application/json
Accept-Encoding: gzip

# Java HttpURLConnection
GET /items HTTP/1.1
User-Agent: Java/17.0.9
Host: localhost:8000
Accept: text/html, image/gif, image/jpeg, */*; q=0.2
Connection: keep-alive

# Java java.net.http, HTTP/1.1 chosen
GET /items HTTP/1.1
Content-Length: 0
Host: localhost:8000
User-Agent: Java-http-client/21.0.1

# Java Apache HttpClient
GET /items HTTP/1.1
Host: localhost:8000
Connection: Keep-Alive
User-Agent: Apache-HttpClient/4.5.14 (Java/17.0.9)
Accept-Encoding: gzip,deflate

# Java OkHttp
POST /items HTTP/1.1
Content-Type: application/json; charset=utf-8
Content-Length: 31
Host: 10.0.2.2:8000
Connection: Keep-Alive
Accept-Encoding: gzip
User-Agent: okhttp/4.12.0

# .NET HttpClient
POST /items HTTP/1.1
Host: localhost:8000
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
Content-Type: application/json; charset=utf-8
Content-Length: 12

# Node fetch (undici)
GET /items HTTP/1.1
host: localhost:8000
connection: keep-alive
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate

# Node axios
POST /items HTTP/1.1
Accept: application/json, text/plain, */*
Content-Type: application/json
User-Agent: axios/1.7.9
Content-Length: 13
Accept-Encoding: gzip, compress, deflate, br
Host: localhost:8000
Connection: keep-alive

# Node http.request
GET /items HTTP/1.1
Host: localhost:8000
Connection: close

# Deno
GET /items HTTP/1.1
accept: */*
accept-language: *
user-agent: Deno/2.1.4
accept-encoding: gzip,br
host: localhost:8000

# Bun
GET /items HTTP/1.1
Connection: keep-alive
User-Agent: Bun/1.1.38
Accept: */*
Host: localhost:8000
Accept-Encoding: gzip, deflate, br, zstd

# Rust reqwest
GET /items HTTP/1.1
accept: */*
host: localhost:8000

# Ruby Net::HTTP
GET /items HTTP/1.1
Accept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3
Accept: */*
User-Agent: Ruby
Host: localhost:8000

# Ruby Faraday
PUT /items/1 HTTP/1.1
User-Agent: Faraday v2.12.2
Content-Type: application/x-www-form-urlencoded
Accept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3
Accept: */*
Connection: close
Host: localhost:8000
Content-Length: 3

# PHP Guzzle
GET /items HTTP/1.1
Host: localhost:8000
User-Agent: GuzzleHttp/7

# PHP streams
GET /items HTTP/1.0
Host: localhost:8000
Connection: close

# Perl LWP
GET /items HTTP/1.1
TE: deflate,gzip;q=0.3
Connection: TE, close
Host: localhost:8000
User-Agent: libwww-perl/6.68

# Erlang hackney
GET /items HTTP/1.1
Host: localhost:8000
User-Agent: hackney/1.20.1

# Dart
GET /items HTTP/1.1
user-agent: Dart/3.5 (dart:io)
accept-encoding: gzip
content-length: 0
host: 10.0.2.2:8000

# Apple CFNetwork
GET /v1/items HTTP/1.1
Host: api.example.com
Accept: */*
User-Agent: Shop/12 CFNetwork/1568.200.51 Darwin/24.1.0
Accept-Language: en-GB,en;q=0.9
Accept-Encoding: gzip, deflate
Connection: keep-alive

# OpenAI SDK for Python
POST /v1/chat/completions HTTP/1.1
Host: localhost:8000
Accept-Encoding: gzip, deflate
Connection: keep-alive
Accept: application/json
Content-Type: application/json
User-Agent: OpenAI/Python 1.60.0
X-Stainless-Lang: python
X-Stainless-Package-Version: 1.60.0
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: CPython
X-Stainless-Runtime-Version: 3.11.7
Authorization: Bearer sk-abc
X-Stainless-Async: false
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
Content-Length: 151

# Anthropic SDK for TypeScript
POST /v1/messages HTTP/1.1
accept: application/json
anthropic-version: 2023-06-01
content-type: application/json
user-agent: Anthropic/JS 0.33.1
x-api-key: abc
x-stainless-lang: js
x-stainless-retry-count: 0
host: localhost:8000
content-length: 90
Connection: keep-alive

# AWS SDK (botocore)
GET /bucket/key%20with%20blanks?list-type=2 HTTP/1.1
Host: localhost:8000
Accept-Encoding: identity
User-Agent: Boto3/1.35.76 md/Botocore#1.35.76 ua/2.0 os/linux#6.1 md/arch#x86_64 lang/python#3.11.7
X-Amz-Date: 20251120T220000Z
X-Amz-Content-SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
Authorization: AWS4-HMAC-SHA256 Credential=A/20251120/eu/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=abc
amz-sdk-invocation-id: 8a0b2f4e-1b1c-4a5d-8f2e-1c2d3e4f5a6b
amz-sdk-request: attempt=1

# MCP client
POST /mcp HTTP/1.1
Host: localhost:8000
Accept: application/json, text/event-stream
Content-Type: application/json
Mcp-Session-Id: 1868a90c
MCP-Protocol-Version: 2025-06-18
Content-Length: 77

# GitHub webhook
POST /hooks HTTP/1.1
Host: hooks.example.com
User-Agent: GitHub-Hookshot/044aadd
Content-Length: 6615
Accept: */*
Content-Type: application/json
X-GitHub-Delivery: 72d3162e-cc78-11e3-81ab-4c9367dc0958
X-GitHub-Event: push
X-GitHub-Hook-ID: 292430182
X-Hub-Signature-256: sha256=d57c68ca6f92289e6987922ff26938930f6e66a2d161ef06abdf1859230aa23c

# Stripe webhook
POST /hooks/stripe HTTP/1.1
Host: hooks.example.com
User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)
Content-Length: 2121
Accept: */*; q=0.5, application/xml
Cache-Control: no-cache
Content-Type: application/json; charset=utf-8
Stripe-Signature: t=1492774577,v1=5257a869,v0=6ffbb59b

# Googlebot
GET /page HTTP/1.1
Host: www.example.com
Connection: keep-alive
Accept: text/html,application/xhtml+xml,application/signed-exchange;v=b3,application/xml;q=0.9,*/*;q=0.8
From: googlebot(at)googlebot.com
User-Agent: Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)
Accept-Encoding: gzip, deflate, br
If-Modified-Since: Mon, 03 Nov 2025 09:00:00 GMT

# nginx, its defaults
GET /items HTTP/1.0
Host: 127.0.0.1:9000
Connection: close
User-Agent: Mozilla/5.0
Accept: */*

# nginx, forwarding, connections kept
GET /items HTTP/1.1
Host: shop.example.com
X-Real-IP: 203.0.113.7
X-Forwarded-For: 203.0.113.7
X-Forwarded-Proto: https
X-Forwarded-Host: shop.example.com
X-Forwarded-Port: 443
User-Agent: Mozilla/5.0
Accept: */*
Cookie: sessionid=abc

# nginx, a map for upgrades that is empty
GET /items HTTP/1.1
Connection: upgrade
Host: shop_backend
X-Forwarded-For: 203.0.113.7, 10.0.0.1
X-Forwarded-Proto: http
User-Agent: curl/8.11.0
Accept: */*

# nginx ingress of Kubernetes
GET /api HTTP/1.1
Host: shop.example.com
X-Request-ID: 6f1c7e1d9d1b4d9e8c3b6f0b8b1f6d2a
X-Real-IP: 203.0.113.7
X-Forwarded-For: 203.0.113.7
X-Forwarded-Host: shop.example.com
X-Forwarded-Port: 443
X-Forwarded-Proto: https
X-Forwarded-Scheme: https
X-Scheme: https
X-Original-Forwarded-For: 198.51.100.1
user-agent: curl/8.11.0
accept: */*

# HAProxy
GET /items HTTP/1.1
host: shop.example.com
user-agent: Mozilla/5.0
accept: */*
x-forwarded-for: 203.0.113.7
x-forwarded-proto: https

# Caddy
GET /items HTTP/1.1
Host: shop.example.com
User-Agent: Mozilla/5.0
Accept: */*
Accept-Encoding: gzip
Via: 1.1 Caddy
X-Forwarded-For: 203.0.113.7
X-Forwarded-Host: shop.example.com
X-Forwarded-Proto: https

# Traefik
GET /items HTTP/1.1
Host: shop.example.com
User-Agent: Mozilla/5.0
Accept: */*
Accept-Encoding: gzip
X-Forwarded-For: 203.0.113.7
X-Forwarded-Host: shop.example.com
X-Forwarded-Port: 443
X-Forwarded-Proto: https
X-Forwarded-Server: traefik-7d9f
X-Real-Ip: 203.0.113.7

# Envoy
GET /items HTTP/1.1
host: shop.example.com
user-agent: Mozilla/5.0
accept: */*
x-forwarded-for: 203.0.113.7
x-forwarded-proto: https
x-envoy-external-address: 203.0.113.7
x-request-id: 1f9b1f4e-5a3e-9d7e-9c1d-0d2b4f6a8c0e
x-envoy-expected-rq-timeout-ms: 15000
x-b3-traceid: 463ac35c9f6413ad48485a3953bb6124
x-b3-spanid: a2fb4a1d1a96d312
x-b3-sampled: 1

# Apache mod_proxy
GET /items HTTP/1.1
Host: 127.0.0.1:9000
User-Agent: Mozilla/5.0
Accept: */*
X-Forwarded-For: 203.0.113.7
X-Forwarded-Host: shop.example.com
X-Forwarded-Server: shop.example.com
Connection: Keep-Alive

# Varnish
GET /items HTTP/1.1
Host: shop.example.com
User-Agent: Mozilla/5.0
Accept: */*
X-Forwarded-For: 203.0.113.7
Via: 1.1 varnish (Varnish/7.4)
Accept-Encoding: gzip
X-Varnish: 32770

# Amazon CloudFront
GET /items HTTP/1.1
Host: origin.example.com
X-Forwarded-For: 203.0.113.7
User-Agent: Amazon CloudFront
X-Amz-Cf-Id: YmZhY2U4NTktMzY1Ni00ZjY2==
Via: 2.0 0123456789abcdef.cloudfront.net (CloudFront)
Connection: Keep-Alive
Accept-Encoding: br,gzip
CloudFront-Viewer-Country: DE
CloudFront-Is-Mobile-Viewer: false
CloudFront-Forwarded-Proto: https

# AWS application load balancer
GET /items HTTP/1.1
X-Forwarded-For: 203.0.113.7
X-Forwarded-Proto: https
X-Forwarded-Port: 443
Host: shop.example.com
X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912345678
User-Agent: Mozilla/5.0
Accept: */*

# Cloudflare
GET /items HTTP/1.1
Host: shop.example.com
Connection: Keep-Alive
Accept-Encoding: gzip, br
X-Forwarded-For: 203.0.113.7
CF-RAY: 8e4f6e0b1d2c3f4a-FRA
X-Forwarded-Proto: https
CF-Visitor: {"scheme":"https"}
User-Agent: Mozilla/5.0
Accept: */*
CF-Connecting-IP: 203.0.113.7
CDN-Loop: cloudflare; loops=1
CF-IPCountry: DE

# Fastly
GET /items HTTP/1.1
Host: shop.example.com
Fastly-Client-IP: 203.0.113.7
Fastly-SSL: 1
X-Forwarded-For: 203.0.113.7
X-Forwarded-Server: cache-fra-1
CDN-Loop: Fastly
X-Varnish: 1
User-Agent: Mozilla/5.0

# Google Cloud Run
GET /items HTTP/1.1
host: shop-abc-ew.a.run.app
user-agent: Mozilla/5.0
accept: */*
traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
x-cloud-trace-context: 0af7651916cd43dd8448eb211c80319c/13226480049427722033;o=1
x-forwarded-for: 203.0.113.7
x-forwarded-proto: https
forwarded: for="203.0.113.7";proto=https

# Heroku router
GET /items HTTP/1.1
Host: shop.herokuapp.com
Connection: close
User-Agent: Mozilla/5.0
X-Request-Id: 9a1f3b2e-8c1d-4c1b-9e1a-2b3c4d5e6f70
X-Forwarded-For: 203.0.113.7
X-Forwarded-Proto: https
X-Forwarded-Port: 443
Via: 1.1 vegur
Connect-Time: 0
X-Request-Start: 1731000000000
Total-Route-Time: 0

# Fly proxy
GET /items HTTP/1.1
host: shop.fly.dev
user-agent: curl/8.11.0
accept: */*
x-forwarded-for: 203.0.113.7, 66.241.124.1
fly-client-ip: 203.0.113.7
x-forwarded-proto: https
fly-forwarded-proto: https
x-forwarded-port: 443
via: 1.1 fly.io
fly-request-id: 01J

# Azure Front Door
GET /items HTTP/1.1
Host: shop.azurefd.net
User-Agent: Mozilla/5.0
Via: HTTP/2.0 Azure
X-Azure-ClientIP: 203.0.113.7
X-Azure-SocketIP: 203.0.113.7
X-Azure-Ref: 0zxV+XAAAAABKMMOjBv2NT4TY6SQVjC0zV1NURURHRTA2MTkAND
X-FD-HealthProbe: 1
X-Forwarded-For: 203.0.113.7
X-Forwarded-Proto: https

# Kubernetes probe
GET /healthz HTTP/1.1
Host: 10.244.1.7:8000
User-Agent: kube-probe/1.31
Accept: */*
Connection: close

# AWS health check
GET /health HTTP/1.1
Host: 10.0.1.23:8000
Connection: close
User-Agent: ELB-HealthChecker/2.0
Accept-Encoding: gzip, compressed

# Google health check
GET / HTTP/1.1
Host: 10.132.0.4
Connection: Keep-alive
User-Agent: GoogleHC/1.0

# Consul health check
GET /health HTTP/1.1
Host: 10.0.0.5:8000
User-Agent: Consul Health Check
Accept: text/plain, text/*, */*
Accept-Encoding: gzip
Connection: close

# HAProxy health check
OPTIONS / HTTP/1.0
Host: shop.example.com

# Docker health check by curl
HEAD /health HTTP/1.1
Host: localhost
User-Agent: curl/8.11.0
Accept: */*

# Prometheus
GET /metrics HTTP/1.1
Host: 10.0.0.5:8000
User-Agent: Prometheus/3.0.1
Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1
Accept-Encoding: gzip
X-Prometheus-Scrape-Timeout-Seconds: 10

# UptimeRobot
HEAD / HTTP/1.1
Host: www.example.com
User-Agent: Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)
Accept: */*
Cache-Control: no-cache
Connection: close

# k6
GET /items?id=1 HTTP/1.1
Host: localhost:8000
User-Agent: k6/0.55.0 (https://k6.io/)
Accept-Encoding: gzip

# wrk
GET / HTTP/1.1
Host: localhost:8000

# ab
GET / HTTP/1.0
Connection: Keep-Alive
Host: localhost:8000
User-Agent: ApacheBench/2.3
Accept: */*

# Postman
POST /items HTTP/1.1
Content-Type: text/plain
User-Agent: PostmanRuntime/7.43.0
Accept: */*
Cache-Control: no-cache
Postman-Token: 5fb5a2f7-1b5c-4c8a-8c7c-1c3d5e7f9a0b
Host: localhost:8000
Accept-Encoding: gzip, deflate, br
Connection: keep-alive
Content-Length: 5
"""


def _heads() -> dict[str, bytes]:
    blocks = (block.strip("\n").split("\n") for block in _HEADS.split("\n# ")[1:])
    return {name: "\r\n".join((*lines, "", "")).encode() for name, *lines in blocks}


ORDINARY = _heads()
"""By their senders."""
