grep -q '<em>guide</em>' /usr/share/doc/site/guide.html
! command -v rst2html5
