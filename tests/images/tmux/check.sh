tmux new-session -d -s work
tmux send-keys -t work 'echo $((40 + 2)) > /tmp/answer; tmux wait-for -S done' Enter
timeout 20 tmux wait-for done
test "$(cat /tmp/answer)" = 42
test "$(tmux show -gv history-limit)" = 100000
tmux kill-server
